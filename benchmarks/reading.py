"""Reading a corpus: memory and pace of the stage that brings passages to the contract, 10 GB beside 1 GB in one run.

usage: python benchmarks/reading.py [--gigabytes 1 10] [--out docs/results/bench_reading.json]

The files are JSON lines of some 1 kB, made of random words, always the same; one line in 10,000 is no JSON and one has
the docid of another. For each size one process reads the file with `ingest_corpus` on a Ray of its own, a worker a
core. Counted are the memory of the driver (RssAnon + RssShmem, 10 times a second), that of the largest
worker and that of all workers together, and seconds. What was read is counted too: every line is a passage or a dead
letter. Needs twice the largest size of disk, below runs/bench_reading, which is removed at the end.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from generation import cpu_name  # noqa: E402

BENCH = ROOT / "runs" / "bench_reading"
#: Every so many lines one is broken, and one repeats a docid.
ODD = 10_000
#: Texts that are written again and again under other docids.
TEXTS = 5_000


def write_corpus(file: Path, gigabytes: float) -> int:
    """A file of so many GB; returns its lines."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 11))) for _ in range(30_000)]
    bodies = [
        json.dumps({"title": draw.choice(words), "text": " ".join(draw.choices(words, k=125))}) for _ in range(TEXTS)
    ]
    lines, size = 0, 0
    with file.open("w") as out:
        while size < gigabytes * 1e9:
            block = []
            for i in range(lines, lines + ODD):
                docid = i - 1 if i % ODD == ODD - 1 else i
                block.append("{broken" if i % ODD == 5 else f'{{"docid": "p{docid}", {bodies[i % TEXTS][1:]}')
            size += out.write("\n".join(block) + "\n")
            lines += ODD
    return lines


class Watch:
    """The most memory that the driver, the largest worker, and all workers together had, in bytes."""

    def __init__(self) -> None:
        import psutil

        self.peaks = {"driver": 0, "largest_worker": 0, "workers": 0}
        self._driver = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.1):
            found = {
                process.pid: _own(process.pid) for process in self._driver.children(recursive=True) if _works(process)
            }
            now = {
                "driver": _own(os.getpid()),
                "largest_worker": max(found.values(), default=0),
                "workers": sum(found.values()),
            }
            self.peaks = {name: max(peak, now[name]) for name, peak in self.peaks.items()}


def _works(process: Any) -> bool:
    """Whether it is a worker of Ray's that has a task."""
    import psutil

    try:
        return str(process.name()).startswith("ray::")
    except psutil.Error:
        return False


def memory_of(pid: int) -> int:
    """RssAnon + RssShmem of a process and all below it."""
    import psutil

    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return 0
    return _own(pid) + sum(_own(process.pid) for process in below)


def _own(pid: int) -> int:
    """RssAnon + RssShmem of a process; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = (line.split() for line in status.splitlines() if line.startswith(("RssAnon", "RssShmem")))
    return sum(int(line[1]) for line in lines) * 1024


def read(file: Path, lines: int) -> dict[str, Any]:
    """Read one file in this process, which becomes a driver."""
    import ray

    from aqe.config.sources import FileCorpus
    from aqe.corpus.stage import ingest_corpus
    from aqe.run import Run

    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=10**9,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "platform")}},
    )
    with Watch() as watch:
        started = time.monotonic()
        run = Run(BENCH / "run", say=lambda line: None, max_dead_share=0.01)
        made = ingest_corpus(run, FileCorpus(format="jsonl", path=file))
        seconds = time.monotonic() - started
    passages, dead = made.stats["passages"], made.stats["dead"]
    assert passages + dead == lines and dead == 2 * lines // ODD, (passages, dead, lines)
    return {
        "bytes": file.stat().st_size,
        "lines": lines,
        "passages": passages,
        "dead": dead,
        "seconds": round(seconds, 1),
        "mb_per_second": round(file.stat().st_size / 1e6 / seconds, 1),
        **{f"{name}_gib": round(peak / 2**30, 3) for name, peak in watch.peaks.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs=2, default=[1.0, 10.0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "bench_reading.json")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(read(Path(args.read[0]), int(args.read[1]))))
        return
    sizes = {}
    for gigabytes in args.gigabytes:
        shutil.rmtree(BENCH, ignore_errors=True)
        BENCH.mkdir(parents=True)
        file = BENCH / "corpus.jsonl"
        print(f"writing {gigabytes:g} GB ...", flush=True)
        lines = write_corpus(file, gigabytes)
        command = [sys.executable, __file__, "--read", str(file), str(lines)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        sizes[f"{gigabytes:g}"] = json.loads(done.stdout.splitlines()[-1])
        print(sizes[f"{gigabytes:g}"], flush=True)
    shutil.rmtree(BENCH)
    small, large = sizes.values()
    ratio = {
        f"{name}_ratio": round(large[f"{name}_gib"] / small[f"{name}_gib"], 2) for name in ("driver", "largest_worker")
    }
    result = {"benchmark": "reading", **ratio, "cpu": cpu_name(), "cores": os.cpu_count(), "gigabytes": sizes}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(ratio))


if __name__ == "__main__":
    main()
