"""One greedy expansion against generate-then-filter: seconds a query and peak memory, on the same machine in one run.

usage: python benchmarks/efficiency.py [--run runs/results_quickstart] [--queries 40] [--rounds 3]
                                       [--out docs/results/efficiency.json]

Reads what `make results-quickstart` left: the aligned model, the base model, the filter, the index. Both ways answer
the same test queries one at a time, as they come from a user, each in a process of its own, in turns.
Generate-then-filter draws as many candidates as the run did, scores them with its trained filter and searches with the
best. The paper (arXiv 2507.11042) reports 69.5 % less time and 71.1 % less memory.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STEPS = ("expand", "filter", "retrieve")


def only(run: Path, stage: str) -> Path:
    """The newest artifact of a stage."""
    found = sorted(
        (p for p in run.glob(f"{stage}-*") if (p / "manifest.json").exists()), key=lambda p: p.stat().st_mtime
    )
    if not found:
        sys.exit(f"{run} has no {stage}: run `make results-quickstart` first.")
    return found[-1]


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(arm: str, run: Path, queries: list[str]) -> dict[str, Any]:
    """Answer the queries one way, in this process: seconds of each step a query, peak memory, that of models alone."""
    # All that either way imports, so that the memory before the models is the same.
    import torch
    import transformers  # noqa: F401

    from aqe.artifact import load
    from aqe.config.data import IndexConfig
    from aqe.config.sample import EngineConfig, PromptConfig
    from aqe.evaluate.filter import load_filter, scores
    from aqe.expand.expander import Expander
    from aqe.expand.recipe import load_recipe
    from aqe.impacts.gold import open_gold_ranker
    from aqe.prompts import load_tokenizer, render
    from aqe.sample.engine import Request, Sampling
    from aqe.sample.load import make_engine

    torch.set_num_threads(os.cpu_count() or 1)
    searched = load(only(run, "search_bm25_tuned")).manifest["config"]
    ranker = open_gold_ranker(only(run, "build_impacts"), IndexConfig(k1=searched["k1"], b=searched["b"]))
    ranker.search("a query that compiles the loops", 100)
    before = peak_mib()
    seconds = dict.fromkeys(STEPS, 0.0)
    aligned = final_model(run) / "model"
    recipe = load_recipe(aligned)
    if arm == "expand":
        expander = Expander.load(aligned)
        expander.expand(queries[0])
    else:
        drawn = load(only(run, "sample_train")).manifest["config"]
        prompt = PromptConfig.model_validate(drawn["prompt"])
        sampling = Sampling(**{**drawn["sampling"], "stop": tuple(drawn["sampling"]["stop"])})
        base = base_model()
        tokenizer = load_tokenizer(base)
        engine = make_engine("transformers", str(base), EngineConfig(name="transformers"), sampling)
        model = str(only(run, "train_filter") / "model")
        reranker, words = load_filter(model)
        engine.generate([Request(render(prompt, queries[0], tokenizer), drawn["num_samples"], 0)])
    for number, query in enumerate(queries):
        started = time.perf_counter()
        if arm == "expand":
            composed = expander.expand(query).composed
            said = time.perf_counter()
            chosen = said
        else:
            request = Request(render(prompt, query, tokenizer), drawn["num_samples"], number)
            (candidates,) = engine.generate([request])
            assert not isinstance(candidates, str), candidates
            said = time.perf_counter()
            texts = [" ".join(candidate.answer.split()) for candidate in candidates]
            of_texts = scores(reranker, words, [(query, text) for text in texts])
            best = texts[max(range(len(texts)), key=of_texts.__getitem__)]
            composed = recipe.expansion(query, best, "stop", 0, 0.0).composed
            chosen = time.perf_counter()
        ranker.search(composed, 100)
        for step, spent in zip(STEPS, (said - started, chosen - said, time.perf_counter() - chosen), strict=True):
            seconds[step] += spent / len(queries)
    return {"seconds": seconds, "peak_mib": peak_mib(), "models_mib": peak_mib() - before}


def final_model(run: Path) -> Path:
    """RSFT + DPO, with all its rounds; of several seeds the one that was searched last."""
    rounds = {p.name.rpartition("-")[0] for p in run.glob("align_rsft_dpo*")}
    return only(run, max(rounds, key=len, default="align_rsft_dpo"))


def base_model() -> Path:
    """The base model's directory."""
    from aqe.base_model import resolve_model
    from aqe.config.data import ModelConfig

    return resolve_model(ModelConfig()).path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "results_quickstart")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "efficiency.json")
    parser.add_argument("--arm", choices=("expand", "filter"))
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "platform"))
    from aqe.artifact import load, versions

    judged = load(only(args.run, "search_bm25_tuned"))
    texts = judged.read()["composed"].to_pylist()[: args.queries]
    if args.arm:
        print(json.dumps(measure(args.arm, args.run, texts)))
        return
    rounds: dict[str, list[dict[str, Any]]] = {"expand": [], "filter": []}
    for number in range(args.rounds):
        for arm in rounds if number % 2 == 0 else reversed(list(rounds)):
            command = [sys.executable, __file__, "--run", str(args.run), "--queries", str(args.queries), "--arm", arm]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rounds[arm].append(json.loads(out.splitlines()[-1]))
            spent = sum(rounds[arm][-1]["seconds"].values())
            print(
                f"round {number + 1}, {arm}: {spent:.3f} s a query, {rounds[arm][-1]['peak_mib']:.0f} MiB", flush=True
            )
    found: dict[str, Any] = {}
    for arm, measured in rounds.items():
        seconds = {step: statistics.median(m["seconds"][step] for m in measured) for step in STEPS}
        memory = {key: statistics.median(m[key] for m in measured) for key in ("peak_mib", "models_mib")}
        found[arm] = {"seconds": seconds, "seconds_per_query": sum(seconds.values()), **memory}
    per_round = zip(rounds["expand"], rounds["filter"], strict=True)
    ratios = [sum(a["seconds"].values()) / sum(b["seconds"].values()) for a, b in per_round]
    candidates = load(only(args.run, "sample_train")).manifest["config"]["num_samples"]
    result = {
        "time_ratio": statistics.median(ratios),
        "time_ratio_of_rounds": ratios,
        "memory_ratio": found["expand"]["peak_mib"] / found["filter"]["peak_mib"],
        "memory_ratio_of_models": found["expand"]["models_mib"] / found["filter"]["models_mib"],
        "paper": {"time_ratio": 1 - 0.695, "memory_ratio": 1 - 0.711},
        "arms": found,
        "candidates": candidates,
        "queries": len(texts),
        "rounds": args.rounds,
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), **versions("torch", "transformers")},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"time {result['time_ratio']:.3f}, memory {result['memory_ratio']:.3f} of generate-then-filter ({args.out})")


if __name__ == "__main__":
    main()
