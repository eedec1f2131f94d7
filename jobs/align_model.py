"""Preferences -> aligned models: RSFT, DPO, RSFT then DPO."""

from aqe.job import main
from aqe.observe.progress import say
from aqe.pipeline import Pipeline


def align_model(pipeline: Pipeline) -> None:
    """Preferences -> aligned models: RSFT, DPO, RSFT then DPO."""
    for name in pipeline.config.models:
        model = pipeline.model(name)
        stats = model.stats
        say(f"{name}: loss {stats['first_loss']:.4f} -> {stats['last_loss']:.4f} in {stats['steps']} steps")
        say(f"{' ' * len(name)}  {model.path / 'model'}")


if __name__ == "__main__":
    main(align_model)
