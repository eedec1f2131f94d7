"""Samples and ranks -> RSFT and DPO sets."""

from aqe.job import main
from aqe.observe.progress import say
from aqe.pipeline import Pipeline


def build_preferences(pipeline: Pipeline) -> None:
    """Samples and ranks -> RSFT and DPO sets."""
    preferences = pipeline.preferences
    for name, value in preferences.stats.items():
        say(f"{name:24} {value}")
    say(str(preferences.path))


if __name__ == "__main__":
    main(build_preferences)
