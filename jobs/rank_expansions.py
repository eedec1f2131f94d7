"""Candidates -> exact gold ranks."""

from aqe.job import main
from aqe.observe.progress import say
from aqe.pipeline import Pipeline


def rank_expansions(pipeline: Pipeline) -> None:
    """Candidates -> exact gold ranks."""
    ranks = pipeline.ranks("train", pipeline.candidates(), "rank_train")
    say(
        f"{ranks.stats['ranks']} ranks, {ranks.stats.get('ranks_per_second', 'resumed, no rate')} ranks/s, {ranks.path}"
    )


if __name__ == "__main__":
    main(rank_expansions)
