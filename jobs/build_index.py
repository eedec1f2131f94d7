"""Corpus -> Lucene index."""

from aqe.job import main
from aqe.observe.progress import say
from aqe.pipeline import Pipeline


def build_index(pipeline: Pipeline) -> None:
    """Corpus -> Lucene index."""
    index = pipeline.index
    say(f"{index.stats['passages']} passages in {index.path}")


if __name__ == "__main__":
    main(build_index)
