"""Training queries -> candidate expansions."""

from aqe.job import main
from aqe.observe.progress import say
from aqe.pipeline import Pipeline


def sample_expansions(pipeline: Pipeline) -> None:
    """Training queries -> candidate expansions."""
    samples = pipeline.candidates()
    stats = samples.stats
    shares = ", ".join(f"{stats[flag]} {flag}" for flag in ("truncated", "empty", "duplicate"))
    rate = stats.get("tokens_per_second", "no rate, resumed:")
    say(f"{stats['candidates']} candidates ({shares})")
    say(f"engine {stats['engine']}, {stats['tokens']} tokens, {rate} tokens/s, {samples.path}")


if __name__ == "__main__":
    main(sample_expansions)
