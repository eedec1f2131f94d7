"""Lucene index -> impact index, for exact gold ranks."""

from aqe.job import main
from aqe.observe.progress import say
from aqe.pipeline import Pipeline


def build_impacts(pipeline: Pipeline) -> None:
    """Lucene index -> impact index, for exact gold ranks."""
    impacts = pipeline.impacts
    stats = impacts.stats
    size = f"{stats['bytes_per_posting']} bytes each"
    say(f"{stats['postings']} postings of {stats['passages']} passages, {size}, in {impacts.path}")


if __name__ == "__main__":
    main(build_impacts)
