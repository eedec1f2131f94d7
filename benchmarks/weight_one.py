"""The gain over zero-shot with the query said once, as the paper searches: top-1 and MRR of a results run's expansions.

usage: python benchmarks/weight_one.py [--config results_quickstart] [--out docs/results/quickstart_weight_1.json]

Reads what `make results-quickstart` left, and searches the expansions of the test queries again with query weight 1:
of the prompt that is served and of RSFT + DPO, all seeds. Nothing is trained or written anew, so both are as they were
made for the weight of the run. The paper (arXiv 2507.11042) reports 17.8 % more top-1 accuracy than its zero-shot.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SYSTEMS = ("bm25_tuned", "zero_shot", "rsft_dpo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="results_quickstart")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "quickstart_weight_1.json")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "platform"))
    import numpy as np

    from aqe.artifact import read_parquet
    from aqe.comparison import Comparison
    from aqe.compose import compose
    from aqe.config.pipeline import load_config
    from aqe.evaluate.compare import evaluate
    from aqe.evaluate.systems import systems
    from aqe.pipeline import Pipeline

    # All that is needed of the run: nothing else is asked for.
    config = load_config(args.config, ["evaluate.systems=[bm25_tuned, zero_shot]", "models=[rsft_dpo]"])
    comparison = Comparison(Pipeline(config))
    evidence = comparison.evidence
    queries = read_parquet(evidence.reported.path / "queries.parquet")
    qrels = read_parquet(evidence.reported.path / "qrels.parquet")
    relevant = dict(zip(queries["qid"].to_pylist(), queries["relevant"].to_pylist(), strict=True))
    texts = dict(zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True))
    ranker = comparison.first.retriever.source({}).open()

    def again(system: Any, searched: tuple[Any, ...]) -> Any:
        """The system with the ranks of its expansions at query weight 1."""
        of_seeds = []
        for one, artifact in zip(system.seeds, searched, strict=True):
            rows = artifact.read()
            asked = zip(rows["qid"].to_pylist(), rows["expansion"].to_pylist(), strict=True)
            said = [(qid, compose(texts[qid], text, 1, config.rank.distinct_words)) for qid, text in asked]
            found = [ranker.gold_ranks([text], relevant[qid])[0] for qid, text in said]
            of_seeds.append(
                replace(
                    one,
                    others=(),
                    ranks=np.array([gold.rank for gold in found], dtype=np.int32),
                    found=np.array([gold.found for gold in found]),
                )
            )
        return replace(of_seeds[0], others=tuple(of_seeds[1:]))

    there = [one for one in systems(evidence, queries, qrels) if one.name in SYSTEMS]
    metrics = evaluate(queries, [again(one, evidence.searched[one.name]) for one in there], config.evaluate)
    shown = ("mrr", "top_1")
    pair = "rsft_dpo_vs_zero_shot"
    result = {
        "query_weight": 1,
        "of_the_run": config.rank.query_weight,
        "num_queries": metrics["num_queries"],
        "seeds": config.evaluate.seeds,
        "systems": {name: {m: of[m] for m in shown} for name, of in metrics["systems"].items()},
        "differences": {name: {m: of[m] for m in shown} for name, of in metrics["differences"].items()},
        "relative_gains": {name: {m: of[m] for m in shown} for name, of in metrics["relative_gains"].items()},
        "paper": {"relative_gains": {pair: {"top_1": 0.178}}},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    gain = result["relative_gains"][pair]["top_1"]
    print(f"top-1 over zero-shot: {gain['value']:+.1%} [{gain['low']:+.1%}, {gain['high']:+.1%}] ({args.out})")


if __name__ == "__main__":
    main()
