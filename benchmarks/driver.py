"""The driver's memory and the pace of its stages: 80,000 queries x 50 candidates beside 8,000 x 50, in the same run.

usage: python benchmarks/driver.py [--queries 8000 80000] [--out docs/results/bench_driver.json]

The corpus is the quickstart's (89,451 passages), indexed by the package's own stages below runs/bench_driver, once.
Queries and candidates are made up of words of its passages, always the same; nothing of a model is loaded. For each
size one process drives the stages from judging to preferences, as a job's driver does, on a Ray of its own with a
worker a core. Sampling is run_units with units, plan, rows and files as the stage has them, but its worker draws words
instead of asking a model; everything else is the stages themselves. Judging by answers instead of named passages, which
finds many for a query (20 to 200 here), is measured beside, in a driver of its own: it holds all pairs of query and
passage.

Counted is the driver's process alone: no worker, no raylet. `peak` is VmHWM, the most memory that was resident: its own
and what it shares, as code of libraries and mapped pages of the object store. `own_peak` leaves out files that are
mapped (RssAnon + RssShmem), looked at 20 times a second. A stage's peak holds what earlier stages have left behind; the
first is what is there before any. About 15 minutes on two cores, 3 GB of disk.
"""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from generation import cpu_name  # noqa: E402

NAME = "bench_driver"
BENCH = ROOT / "runs" / NAME
SIZES = (8_000, 80_000)
CANDIDATES = 50
QUERIES_PER_UNIT = 8
WORDS = range(12, 21)
#: Token ids of SmolLM2.
VOCABULARY = 49_152
#: Passages that hold an answer, where answers say what is relevant.
ANSWERED = range(20, 201)
#: What the larger size may hold (GiB), and how often the smaller one's.
GOALS = {"driver_peak_gib_80k": 1.0, "driver_peak_ratio": 1.3}


class Words:
    """Texts about a passage: words of it among words of others."""

    def __init__(self, corpus: Path) -> None:
        from aqe.artifact import read_parquet

        passages = read_parquet(corpus)
        self.docids: list[str] = passages["docid"].to_pylist()
        self._texts: list[str] = passages["text"].to_pylist()

    def about(self, passage: int, size: int, share: float, draw: random.Random) -> str:
        """`size` words, about `share` of them from the passage, the others from a passage that was drawn."""
        own = round(share * size)
        words = draw.choices(self._texts[passage].split(), k=own)
        words += draw.choices(draw.choice(self._texts).split(), k=size - own)
        draw.shuffle(words)
        return " ".join(words)

    def in_passages(self, numbers: range) -> list[str]:
        """Words that stand in so many passages."""
        from aqe.corpus.judge import tokens

        found = Counter(word for text in self._texts for word in set(tokens(text)))
        return sorted(word for word, count in found.items() if count in numbers)


def write_queries(out: Path, corpus: Path, count: int, by_answers: bool) -> dict[str, int]:
    """train.parquet (records.QUERIES): each asks for one passage, its number ends the qid, or for those with a word."""
    from aqe.artifact import write_parquet
    from aqe.records import QUERIES, table

    words, draw = Words(corpus), random.Random(0)
    answers = words.in_passages(ANSWERED) if by_answers else []
    rows = []
    for i in range(count):
        passage = draw.randrange(len(words.docids))
        text = words.about(passage, draw.randint(8, 14), 0.2, draw)
        asked: dict[str, list[str]] = {"answers": [], "positives": []}
        asked |= {"answers": [draw.choice(answers)]} if by_answers else {"positives": [words.docids[passage]]}
        rows.append({"qid": f"q{i:06d}-{passage}", "text": text, **asked})
    write_parquet(table(rows, QUERIES), out / "train.parquet")
    return {"train": count}


class Writer:
    """In the place of a model: candidates that know of the passage more or less, some of them said before."""

    def __init__(self, corpus: Path) -> None:
        self._words = Words(corpus)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        from aqe.records import SAMPLES
        from aqe.units import Result

        columns: dict[str, list[Any]] = {name: [] for name in SAMPLES.names}
        for row in rows:
            draw, passage = random.Random(row["seed"]), int(row["qid"].rpartition("-")[2])
            texts: list[str] = []
            for i in range(row["num_samples"]):
                duplicate = bool(texts) and draw.random() < 0.1
                size, share = draw.choice(WORDS), 0.4 * draw.random()
                text = draw.choice(texts) if duplicate else self._words.about(passage, size, share, draw)
                texts.append(text)
                candidate = {
                    "unit_id": row["unit_id"],
                    "qid": row["qid"],
                    "sample_idx": i,
                    "raw": f" {text}",
                    "expansion": text,
                    "finish_reason": "length" if draw.random() < 0.1 else "stop",
                    "token_ids": [draw.randrange(VOCABULARY) for _ in range(round(1.4 * len(text.split())))],
                    "stop_at": None,
                    "num_tokens": round(1.4 * len(text.split())),
                    "logprob": -draw.uniform(10, 60),
                    "duplicate": duplicate,
                }
                for name, value in candidate.items():
                    columns[name].append(value)
        return Result(pa.table(columns, schema=SAMPLES), [], {"candidates": len(columns["qid"])})


def sample(run: Any, corpus: Any, judged: Any, prompt: Any) -> Any:
    """The artifact of aqe.sample.stage, with a Writer for its worker."""
    from aqe.pools import run_units
    from aqe.records import SAMPLES
    from aqe.sample.plan import PlanReader, write_plan
    from aqe.units import Pool, Work

    settings = {"num_samples": CANDIDATES, "seed": 0, "queries_per_unit": QUERIES_PER_UNIT}

    def build(out: Path) -> dict[str, Any]:
        plan, nodes = out / "plan.parquet", run.nodes("cpu")
        units = write_plan(plan, judged.path / "queries.parquet", prompt, identity=NAME, **settings)
        work = Work(Writer, {"corpus": corpus.path / "data"}, PlanReader(plan), SAMPLES)
        pool = Pool(sum(nodes.cpus), num_cpus=0.9, labels=nodes.labels)
        return run_units(run, "sample_train", out, units, work, pool)

    return run.make("sample_train", config=settings, inputs={"queries": judged}, build=build)


def resident(*kinds: str) -> float:
    """GiB of this process: the sum of these lines of Linux's account of it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kinds)) / 2**20


class Meter:
    """What the stages take of this process."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {"start": self._held()}

    @staticmethod
    def _held() -> dict[str, float]:
        return {"peak_gib": resident("VmHWM"), "own_peak_gib": resident("RssAnon", "RssShmem")}

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, float]]:
        """Measures what happens inside; yields what was measured, for more of it."""
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew.
        found = self._held()
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(0.05):
                found["own_peak_gib"] = max(found["own_peak_gib"], self._held()["own_peak_gib"])

        watch = threading.Thread(target=look, daemon=True)
        watch.start()
        started = time.perf_counter()
        yield found
        found["seconds"] = time.perf_counter() - started
        ended.set()
        watch.join()
        found["peak_gib"] = resident("VmHWM")
        self.stages[name] = found

    def most(self, key: str) -> float:
        return max(stage[key] for stage in self.stages.values())


def drive(queries: int, answers: bool) -> dict[str, Any]:
    """The driver, on the cluster that RAY_ADDRESS names: stages from judging to preferences, or judging by answers."""
    import ray

    from aqe.config.pipeline import load_config
    from aqe.corpus.stage import judge_queries
    from aqe.nodes import on_node
    from aqe.pipeline import Pipeline
    from aqe.prefer.stage import build_preferences
    from aqe.prompts import resolve
    from aqe.rank.stage import rank_expansions

    ray.init(runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "platform")}}, log_to_driver=False)
    pipeline = Pipeline(load_config("quickstart", [f"name={NAME}"], ROOT))
    config, corpus, retriever, model = pipeline.config, pipeline.corpus, pipeline.retriever, pipeline.base
    run, prompt = replace(pipeline.run, root=BENCH / str(queries)), resolve(config.prompt)

    def written(by_answers: bool) -> Any:
        return run.make(
            "queries",
            config={"queries": queries, "by_answers": by_answers},
            inputs={"corpus": corpus},
            build=lambda out: on_node(run.nodes("cpu"), write_queries, out, corpus.path / "data", queries, by_answers),
        )

    if answers:
        asked, meter = written(by_answers=True), Meter()
        with meter.stage("judge by answers") as found:
            judged = judge_queries(run, split="train", corpus=corpus, queries=asked)
        return {"pairs": judged.stats["relevant_pairs"], **found}
    asked, meter = written(by_answers=False), Meter()
    with meter.stage("judge"):
        judged = judge_queries(run, split="train", corpus=corpus, queries=asked)
    with meter.stage("sample") as found:
        samples = sample(run, corpus, judged, prompt)
    found["candidates_per_second"] = samples.stats["candidates"] / found["seconds"]
    with meter.stage("rank") as found:
        ranks = rank_expansions(run, retriever, judged=judged, samples=samples, stage="rank_train")
    found["ranks_per_second"] = ranks.stats["ranks"] / found["seconds"]
    with meter.stage("prefer") as found:
        preferences = build_preferences(
            run, config.prefer, prompt=prompt, model=model, judged=judged, samples=samples, ranks=ranks
        )
    assert preferences.stats["queries"] == queries and ranks.stats["ranks"] == queries * (CANDIDATES + 1)
    for name in ("judge", "sample", "rank", "prefer"):
        meter.stages[name]["queries_per_second"] = queries / meter.stages[name]["seconds"]
    units = -(-queries // QUERIES_PER_UNIT)
    for name in ("sample", "rank", "prefer"):
        meter.stages[name]["units_per_second"] = units / meter.stages[name]["seconds"]
    kept = ("dpo_pairs", "plain_mrr", "candidate_mrr", "best_mrr", "mean_pairwise_cosine", "distinct_1")
    return {
        "queries": queries,
        "units": units,
        "peak_gib": meter.most("peak_gib"),
        "own_peak_gib": meter.most("own_peak_gib"),
        "stages": meter.stages,
        "preferences": {key: preferences.stats[key] for key in kept},
    }


def measure(queries: int, env: Mapping[str, str]) -> dict[str, Any]:
    """One size, from nothing but corpus and index."""

    def driven(*options: str) -> dict[str, Any]:
        shutil.rmtree(BENCH / str(queries), ignore_errors=True)
        answer = BENCH / f"{queries}.json"
        command = [sys.executable, __file__, "--drive", str(queries), "--out", str(answer), *options]
        subprocess.run(command, env={**env, "TQDM_DISABLE": "1"}, check=True)
        found: dict[str, Any] = json.loads(answer.read_text())
        answer.unlink()
        shutil.rmtree(BENCH / str(queries))
        return found

    return {**driven(), "judge_by_answers": driven("--by-answers")}


def summarise(sizes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The two sizes, and what the goals are about."""
    from aqe.artifact import versions

    small, large = sizes
    stats = next(BENCH.glob("build_impacts-*")) / "manifest.json"
    return rounded(
        {
            "benchmark": "driver",
            "driver_peak_gib_80k": large["peak_gib"],
            "driver_peak_ratio": large["peak_gib"] / small["peak_gib"],
            "driver_own_peak_ratio": large["own_peak_gib"] / small["own_peak_gib"],
            "goals": GOALS,
            "judge_bytes_per_pair": bytes_per_pair(small["judge_by_answers"], large["judge_by_answers"]),
            "counted": "the driver's process alone: peak_gib is VmHWM, own_peak_gib RssAnon + RssShmem",
            "candidates": CANDIDATES,
            "queries_per_unit": QUERIES_PER_UNIT,
            "passages": json.loads(stats.read_text())["stats"]["passages"],
            "sizes": {str(size["queries"]): size for size in sizes},
            "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2)},
            "versions": {"python": platform.python_version(), **versions("ray", "pyarrow", "numba")},
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    )


def bytes_per_pair(small: Mapping[str, float], large: Mapping[str, float]) -> int:
    """What judging by answers holds in the driver for one more pair of query and passage."""
    return round((large["peak_gib"] - small["peak_gib"]) * 2**30 / (large["pairs"] - small["pairs"]))


def rounded(value: Any) -> Any:
    """Four digits after the point of what is small, two of what is large."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return round(value, 4 if abs(value) < 10 else 1) if isinstance(value, float) else value


def table(result: Mapping[str, Any]) -> str:
    """One line a stage and size, and whether the goals are met."""
    lines = [f"{'queries':>8} {'stage':8}{'peak':>11}{'own':>11}{'seconds':>9}{'units/s':>9}{'queries/s':>11}  more"]
    for size in result["sizes"].values():
        for name, stage in size["stages"].items():
            cells = "".join(f"{stage[key] * 1024:.0f} MiB".rjust(11) for key in ("peak_gib", "own_peak_gib"))
            for key, width in (("seconds", 9), ("units_per_second", 9), ("queries_per_second", 11)):
                cells += f"{stage[key]:.0f}".rjust(width) if key in stage else " " * width
            more = [f"{stage[f'{noun}_per_second']:,.0f} {noun}/s" for noun in ("candidates", "ranks")
                    if f"{noun}_per_second" in stage]  # fmt: skip
            lines.append(f"{size['queries']:>8,} {name:8}{cells}  {', '.join(more)}")
        judged = size["judge_by_answers"]
        held = f"{judged['peak_gib'] * 1024:.0f} MiB for {judged['pairs']:,} pairs in {judged['seconds']:.0f} s"
        lines.append(f"{size['queries']:>8,} judged by answers, in a driver of its own: {held}")
    for key, goal in GOALS.items():
        lines.append(f"{key}: {result[key]:.2f} (goal: at most {goal:g}): {'met' if result[key] <= goal else 'MISSED'}")
    return "\n".join(lines)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, nargs=2, default=SIZES, help="others than the default are only shown")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "bench_driver.json")
    parser.add_argument("--drive", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--by-answers", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    from aqe.artifact import write_text

    if args.drive:
        write_text(json.dumps(drive(args.drive, args.by_answers)), args.out)
        return
    from cluster.local.ray_head import ray_head

    with ray_head() as head:
        env = {**head.env, "RAY_ADDRESS": head.gcs}
        result = summarise([measure(queries, env) for queries in args.queries])
    print(f"\n{table(result)}")
    if tuple(args.queries) == SIZES:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(result, indent=1) + "\n", args.out)
        print(args.out)


if __name__ == "__main__":
    main()
