"""Queries -> qrels, from their positives or by their answers over the whole corpus."""

from aqe.job import main
from aqe.observe.progress import say
from aqe.pipeline import Pipeline


def judge_queries(pipeline: Pipeline) -> None:
    """Queries -> qrels, from their positives or by their answers over the whole corpus."""
    for split in ("train", "dev", "test"):
        judged = pipeline.judged(split)
        stats = judged.stats
        say(f"{split}: {stats['judged']} of {stats['queries']} queries have a relevant passage, {judged.path}")


if __name__ == "__main__":
    main(judge_queries)
