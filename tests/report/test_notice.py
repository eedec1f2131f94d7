"""Whoever reads a result is told which of its queries are synthetic."""

from pathlib import Path
from typing import Any

import pytest

from aqe.config.pipeline import PipelineConfig
from aqe.evaluate.compare import evaluate
from aqe.report.notice import synthetic_notice
from aqe.report.page import ReportContext, write_report
from tests.report.test_report import CONFIG, make_queries, make_systems

OWN = {"format": "jsonl", "path": "q.jsonl"}
SYNTHETIC = {"format": "synthetic", "number": 10}


def notice(queries: dict[str, Any], **evaluate: Any) -> str | None:
    corpus = {"format": "jsonl", "path": "c.jsonl"}
    config = {"name": "x", "corpus": corpus, "queries": queries, "evaluate": evaluate}
    return synthetic_notice(PipelineConfig.model_validate(config), "smollm2")


def test_nothing_is_said_of_own_queries() -> None:
    assert notice({"train": OWN, "dev": OWN, "test": OWN}) is None


@pytest.mark.parametrize(
    ("queries", "begins", "ends"),
    [
        (SYNTHETIC, "Synthetic queries: train, dev and test. smollm2 wrote them", "say little about real ones"),
        (
            {"train": SYNTHETIC, "dev": [OWN, SYNTHETIC], "test": OWN},
            "Synthetic queries: train and dev (in part). ",
            "The test queries, which the numbers are of, are not synthetic.",
        ),
        ({"train": OWN, "dev": OWN, "test": SYNTHETIC}, "Synthetic queries: test. ", "say little about real ones"),
    ],
)
def test_the_splits_are_named_and_what_the_numbers_say(queries: dict[str, Any], begins: str, ends: str) -> None:
    said = notice(queries)
    assert said is not None and said.startswith(begins) and ends in said
    assert ("not first" in said) == (queries.get("train", SYNTHETIC) == SYNTHETIC)


def test_it_is_of_the_split_that_is_reported() -> None:
    queries = {"train": OWN, "dev": SYNTHETIC, "test": OWN}
    assert "say little" in (notice(queries, split="dev") or "") and "say little" not in (notice(queries) or "")


def test_the_page_says_it_before_the_numbers(tmp_path: Path) -> None:
    queries, systems = make_queries(), make_systems()[:2]
    metrics = evaluate(queries, systems, CONFIG)

    def pages(said: str) -> tuple[str, str]:
        write_report(tmp_path, metrics, ReportContext("t", queries, systems, notice=said))
        return (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()

    html, markdown = pages("Synthetic queries: test. <a> wrote them.")
    said = "Synthetic queries: test. &lt;a&gt; wrote them."
    assert html.index(f'<p class="notice">{said}</p>') < html.index("<h2>Systems</h2>")
    assert markdown.index(f"> **{said}**") < markdown.index("## Systems")
    assert not any('class="notice"' in page or "> **" in page for page in pages(""))
