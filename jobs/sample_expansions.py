"""Training queries -> candidate expansions."""

from aqe.job import main
from aqe.observe.progress import say
from aqe.pipeline import Pipeline


def sample_expansions(pipeline: Pipeline) -> None:
    """Training queries -> candidate expansions."""
    samples = pipeline.candidates()
    stats = samples.stats
    say(f"{stats['candidates']} candidates ({stats['truncated']} truncated, {stats['empty']} empty, {stats['duplicate']} duplicate)")
    say(f"engine {stats['engine']}, {stats['tokens']} tokens, {stats.get('tokens_per_second', 'resumed, no rate')} tokens/s, {samples.path}")


if __name__ == "__main__":
    main(sample_expansions)
