"""RSFT and DPO against TRL as it comes: seconds per step, tokens per second, memory, and whole stages.

usage: python benchmarks/align.py [--run runs/quickstart] [--model DIR] [--steps 24] [--rounds 2]
                                  [--out docs/results/bench_align.json]

Reads the RSFT and DPO sets that `make quickstart` left. Both ways train the same model on the same first rows, 16 per
step, in float32, on all cores, each in processes of its own, in turns. `aqe` is the stage of the platform: Ray, Ray
Train, DeepSpeed, the reference's log-probabilities, checkpoints, curves, the export and its check. `trl` is a plain
script: TRL's trainer with its own defaults but for what decides the result (batch, rate, epochs, precision), then
`save_model`. A step's seconds are the median without the first two. A whole stage is measured from the first process'
start to the model on disk; for 100 steps it is computed: what is not steps, and 100 times a step. Memory is the most
that all processes of a way hold together (RssAnon + RssShmem), and that of the process that trains.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from generation import cpu_name  # noqa: E402
from reading import memory_of  # noqa: E402

BATCH = 16
#: Of a whole stage that is computed.
STAGE_STEPS = 100
#: The first steps allocate, and are not counted.
WARM = 2
KINDS = ("rsft", "dpo")


def rows_of(run: Path, kind: str, count: int, out: Path) -> Path:
    """The first rows of a set as a file of its own."""
    import pyarrow.parquet as pq

    found = sorted((p for p in run.glob("build_preferences-*") if (p / "manifest.json").exists()), key=os.path.getmtime)
    if not found:
        sys.exit(f"{run} has no build_preferences: run `make quickstart` first, or name a run with --run.")
    rows = pq.read_table(found[-1] / f"{kind}.parquet")
    if rows.num_rows < count:
        sys.exit(f"{found[-1]} has {rows.num_rows} rows of {kind}, {count} are needed: ask for fewer --steps.")
    pq.write_table(rows.slice(0, count), out)
    return out


def aqe(kind: Any, rows: Path, model: Path, out: Path) -> dict[str, Any]:
    """Train as the platform does, on a Ray of its own."""
    import ray

    from aqe.align.stage import train
    from aqe.artifact import read_parquet
    from aqe.config.align import AlignConfig
    from aqe.run import Run

    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "platform")}},
    )
    stage = {"batch_size": BATCH, "epochs": 1}
    config = AlignConfig.model_validate({kind: stage, "micro_batch_size": BATCH, "zero_stage": 0})
    stats = train(Run(out, say=lambda line: None), config, kind, data=rows, start=model, out=out / "stage")
    curves = read_parquet(out / "stage" / "curves.parquet")
    return {
        "seconds": curves["seconds"].to_pylist(),
        "losses": curves["loss"].to_pylist(),
        "trainer_gib": stats["worker_peak_gib"],
        "phases": stats["phases"],
    }


def trl(kind: str, rows: Path, model: Path, out: Path) -> dict[str, Any]:
    """Train as TRL's documentation does."""
    import resource

    import pyarrow.parquet as pq
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    columns = ["prompt", "completion"] if kind == "rsft" else ["prompt", "chosen", "rejected"]
    dataset = Dataset(pq.read_table(rows, columns=columns))

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.last = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.last = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            now = time.perf_counter()
            self.seconds.append(now - self.last)
            self.last = now

    import torch

    decisive = {
        "output_dir": str(out / "trainer"),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": 5e-5,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    clock = Clock()
    if kind == "rsft":
        trainer: Any = SFTTrainer(str(model), args=SFTConfig(**decisive), train_dataset=dataset, callbacks=[clock])
    else:
        trainer = DPOTrainer(str(model), args=DPOConfig(**decisive), train_dataset=dataset, callbacks=[clock])
    trainer.train()
    trainer.save_model(str(out / "model"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"seconds": clock.seconds, "losses": losses, "trainer_gib": round(peak, 2)}


WAYS = {"aqe": aqe, "trl": trl}


def tokens_of(rows: Path, kind: str) -> int:
    """Tokens of prompts and completions in a file of rows, each pair's prompt twice."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(rows)
    total = {name: pc.sum(pc.list_value_length(table[name])).as_py() for name in table.column_names if "_ids" in name}
    sides = [name for name in total if name != "prompt_ids"]
    return int(sum(total[name] for name in sides) + len(sides) * total["prompt_ids"])


def measured(way: str, kind: str, rows: Path, model: Path) -> dict[str, Any]:
    """One way from its first process' start to its end."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as directory:
        out = Path(directory)
        command = [sys.executable, __file__, "--way", way, kind, str(rows), str(model), str(out)]
        started = time.monotonic()
        # TRL's threads are torch's own default; the platform sets those of its worker itself.
        env = {**os.environ, "RAY_TMPDIR": str(out), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        with (out / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
            peak = 0
            while process.poll() is None:
                peak = max(peak, memory_of(process.pid))
                time.sleep(0.5)
        whole = time.monotonic() - started
        if process.returncode:
            sys.exit((out / "log").read_text()[-3000:])
        found: dict[str, Any] = json.loads((out / "found.json").read_text())
    steps = found.pop("seconds")
    step = statistics.median(steps[WARM:])
    return {
        **found,
        "step_seconds": round(step, 3),
        "whole_seconds": round(whole, 1),
        "stage_seconds": round(whole - sum(steps) + STAGE_STEPS * step, 1),
        "all_gib": round(peak / 2**30, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "quickstart")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "bench_align.json")
    parser.add_argument("--way", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        way, kind, *paths = args.way
        rows, model, out = map(Path, paths)
        (out / "found.json").write_text(json.dumps(WAYS[way](kind, rows, model, out)))
        return
    from aqe.artifact import versions
    from aqe.base_model import resolve_model
    from aqe.config.data import ModelConfig

    model = args.model or resolve_model(ModelConfig()).path
    kinds: dict[str, Any] = {}
    files = Path(tempfile.mkdtemp())
    for kind in KINDS:
        rows = rows_of(args.run, kind, args.steps * BATCH, files / f"{kind}.parquet")
        tokens = tokens_of(rows, kind) / args.steps
        rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for number in range(args.rounds):
            for way in WAYS if number % 2 == 0 else reversed(list(WAYS)):
                rounds[way].append(measured(way, kind, rows, model))
                now = rounds[way][-1]
                print(
                    f"round {number + 1}, {kind}, {way}: {now['step_seconds']} s per step, "
                    f"{tokens / now['step_seconds']:.0f} tokens/s, {now['trainer_gib']} GiB ({now['all_gib']} in all), "
                    f"{now['whole_seconds']} s in all",
                    flush=True,
                )
        kinds[kind] = {"tokens_per_step": round(tokens), "rounds": rounds}

    def ratio(kind: str, key: str, above: str = "trl", below: str = "aqe") -> float:
        of = kinds[kind]["rounds"]
        pairs = zip(of[above], of[below], strict=True)
        return round(statistics.median(a[key] / b[key] for a, b in pairs), 2)

    result = {
        "benchmark": "align",
        "rsft_step_ratio": ratio("rsft", "step_seconds"),
        "dpo_step_ratio": ratio("dpo", "step_seconds"),
        "stage_ratio": min(ratio(kind, "stage_seconds") for kind in KINDS),
        "stage_ratios": {kind: ratio(kind, "stage_seconds") for kind in KINDS},
        "memory_ratio": max(ratio(kind, "trainer_gib", "aqe", "trl") for kind in KINDS),
        "memory_ratio_of_all": max(ratio(kind, "all_gib", "aqe", "trl") for kind in KINDS),
        "steps": args.steps,
        "batch": BATCH,
        "kinds": kinds,
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            **versions("torch", "transformers", "trl", "deepspeed"),
        },
    }
    shutil.rmtree(files)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if "ratio" in key}))


if __name__ == "__main__":
    main()
