"""The whole loop: sample, rank, prefer, align (RSFT, then DPO), expand, evaluate."""

from aqe.evaluate.stage import evaluate_expander as evaluate
from aqe.evaluate.stage import next_steps
from aqe.job import main
from aqe.observe.progress import say
from aqe.pipeline import Pipeline


def run_pipeline(pipeline: Pipeline) -> None:
    """The whole loop: sample, rank, prefer, align (RSFT, then DPO), expand, evaluate."""
    evaluation = evaluate(pipeline)
    say("\n" + evaluation.text)
    report = pipeline.root / "report"
    say(f"Report: {report / 'report.html'}\n        {report / 'report.md'}\n")
    say("Next:\n" + "\n".join(f"  * {step}" for step in next_steps(pipeline)) + "\n")


if __name__ == "__main__":
    main(run_pipeline)
