"""Aligned models -> report: greedy expansions of held-out queries, searched and compared."""

from aqe.evaluate.stage import evaluate_expander
from aqe.job import main
from aqe.observe.progress import say
from aqe.pipeline import Pipeline


def evaluate(pipeline: Pipeline) -> None:
    """Aligned models -> report: greedy expansions of held-out queries, searched and compared."""
    say(evaluate_expander(pipeline).text)


if __name__ == "__main__":
    main(evaluate)
