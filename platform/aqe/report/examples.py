"""Queries to look at: best wins, worst losses, and some that nobody picked. The same ones every time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from aqe.evaluate.compare import System, baseline, best_model


@dataclass(frozen=True)
class OfSystem:
    """What one system made of the query: `expansion` None = it makes none; `rank` None = the passage is not found."""

    system: str
    label: str
    rank: int | None
    expansion: str | None


@dataclass(frozen=True)
class Example:
    """A query, where BM25 and the model rank its passage (None = not found), and what every system made of it."""

    qid: str
    query: str
    before: int | None
    after: int | None
    rows: list[OfSystem]
    title: str = ""
    """Title and text of the relevant passage, where they are known."""
    text: str = ""


@dataclass(frozen=True)
class Examples:
    """`model` is the aligned model that is held against BM25, `label` how the report calls it."""

    model: str | None = None
    label: str = ""
    wins: list[Example] = field(default_factory=list)
    losses: list[Example] = field(default_factory=list)
    unpicked: list[Example] = field(default_factory=list)

    def groups(self) -> list[tuple[str, list[Example]]]:
        """Title and examples."""
        return [
            (f"Best wins of {self.label} against BM25", self.wins),
            (f"Worst losses of {self.label} against BM25", self.losses),
            ("Drawn at random, not picked", self.unpicked),
        ]


def pick_examples(
    queries: pa.Table,
    systems: Sequence[System],
    metrics: Mapping[str, Any],
    count: int,
    docs: Mapping[str, tuple[str, str]] | None = None,
) -> Examples:
    """`count` wins and losses with the largest ratio of gold ranks, in log2; then as many queries drawn at random.

    What is not found has the gold rank 1 + the number of passages there, and none in the examples.
    The model is the aligned one with the best MRR, against the plain query; without either there are no examples. Equal
    ratios come in the order of the queries. `docs` gives title and text of a passage by docid, to show the relevant
    one.
    """
    by_name = {s.name: s for s in systems}
    model, plain = best_model(metrics), baseline(metrics)
    if model is None or plain is None or not count:
        return Examples()
    total = queries.num_rows
    covered = {s.name: s.spread(total) for s in systems}
    before, after = (covered[name][0] for name in (plain, model))
    both = np.flatnonzero((before > 0) & (after > 0))
    gain = np.log2(before[both]) - np.log2(after[both])
    order = np.argsort(-gain, kind="stable")
    wins = [int(both[i]) for i in order[:count] if gain[i] > 0]
    order = np.argsort(gain, kind="stable")
    losses = [int(both[i]) for i in order[:count] if gain[i] < 0]
    rest = np.setdiff1d(both, [*wins, *losses])
    drawn = np.random.default_rng(metrics["seed"]).permutation(rest)[:count]
    columns = {name: queries[name].to_pylist() for name in ("qid", "text", "positives")}

    def example(i: int) -> Example:
        rows = [
            OfSystem(s.name, s.label, int(shown[i]) if np.isfinite(shown[i]) else None, expansions[i])
            for s, (_, shown, expansions) in zip(systems, covered.values(), strict=True)
            if not np.isnan(shown[i])
        ]
        rank = {row.system: row.rank for row in rows}
        positives = columns["positives"][i] or []
        title, text = next(((docs or {})[d] for d in positives if d in (docs or {})), ("", ""))
        return Example(columns["qid"][i], columns["text"][i], rank[plain], rank[model], rows, title, text)

    return Examples(
        model, by_name[model].label, *([example(int(i)) for i in chosen] for chosen in (wins, losses, sorted(drawn)))
    )
