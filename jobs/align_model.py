"""Preferences -> an aligned model, by the stages that `align.stages` names: [rsft, dpo], or either alone."""

from aqe.job import main
from aqe.observe.progress import say
from aqe.pipeline import Pipeline


def align_model(pipeline: Pipeline) -> None:
    """Preferences -> an aligned model, by the stages that `align.stages` names: [rsft, dpo], or either alone."""
    model = pipeline.model("_".join(pipeline.config.align.stages))
    for name, value in model.stats.items():
        say(f"{name:24} {value}")
    say(str(model.path / "model"))


if __name__ == "__main__":
    main(align_model)
