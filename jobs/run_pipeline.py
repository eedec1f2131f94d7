"""The whole loop: sample, rank, prefer, align (RSFT, then DPO), expand, evaluate."""

from aqe.evaluate.stage import evaluate_expander
from aqe.job import main
from aqe.observe.progress import say
from aqe.pipeline import Pipeline


def run_pipeline(pipeline: Pipeline) -> None:
    """The whole loop: sample, rank, prefer, align (RSFT, then DPO), expand, evaluate."""
    pipeline.prepare()
    say(evaluate_expander(pipeline).text)


if __name__ == "__main__":
    main(run_pipeline)
