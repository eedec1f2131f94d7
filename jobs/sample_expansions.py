"""Training queries -> candidate expansions."""

from aqe.job import main
from aqe.observe.progress import say
from aqe.pipeline import Pipeline


def sample_expansions(pipeline: Pipeline) -> None:
    """Training queries -> candidate expansions."""
    samples = pipeline.candidates()
    stats = samples.stats
    shares = ", ".join(f"{stats[flag]} {flag}" for flag in ("truncated", "empty", "duplicate"))
    say(f"{stats['candidates']} candidates ({shares})")
    say(f"engine {stats['engine']}, {stats['tokens']} tokens, {stats['tokens_per_worker_second']} a second and worker")
    say(str(samples.path))


if __name__ == "__main__":
    main(sample_expansions)
