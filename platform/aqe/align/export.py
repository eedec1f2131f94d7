"""The model card that goes beside a finished model's weights."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from aqe.artifact import write_text


def write_model_card(
    model_dir: Path,
    *,
    title: str,
    facts: Mapping[str, Mapping[str, Any]],
    base_model: str,
    license: str | None = None,
    example: str | None = None,
) -> None:
    """Write README.md, the Hugging Face model card.

    `facts`: heading -> rows of a table (name -> value), for instance data, prompt, index, settings, results; nothing
    is written that is not in it. `license`: of the weights, as the Hub writes it (apache-2.0); None says that it is
    not known. `example`: a prompt, verbatim.
    """
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["query-expansion", "information-retrieval", "bm25", "aqe", "trl"],
        "license": license or "unknown",
    }
    # The Hub takes a model id here, not a path of somebody's machine.
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base_model):
        front["base_model"] = base_model
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {title}",
        "This model writes one expansion of a search query: words that the passage which answers it is likely to hold. "
        "It was aligned with the ranks that BM25 gave its own candidates (Aligned Query Expansion).",
        f"Start model: `{base_model}`. License of the weights: {license or 'unknown, see the start model'}.",
    ]
    if example is not None:
        parts.append(f"## Prompt\n\n```text\n{example}\n```")
    parts += [_section(heading, rows) for heading, rows in facts.items()]
    write_text("\n\n".join(parts) + "\n", model_dir / "README.md")


def _section(heading: str, rows: Mapping[str, Any]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join([f"## {heading}", "", "| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    """One table cell: numbers short, lists joined, nothing that would break the table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        text = ", ".join(f"{name} {_cell(item)}" for name, item in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        text = ", ".join(_cell(item) for item in value)
    else:
        text = str(value)
    return text.replace("|", "\\|").replace("\n", "⏎")
