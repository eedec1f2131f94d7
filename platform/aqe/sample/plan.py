"""The plan: which prompts are generated together, with which seeds."""

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from aqe.artifact import digest
from aqe.config.sample import PromptConfig
from aqe.records import PLAN, table
from aqe.sample.prompts import render
from aqe.units import Unit


def make_plan(
    queries: pa.Table,
    prompt: PromptConfig,
    *,
    num_samples: int,
    seed: int,
    queries_per_unit: int,
    identity: str,
    tokenizer: Any = None,
) -> pa.Table:
    """Rows of records.PLAN, in the order of `queries`, `queries_per_unit` of them to a unit.

    `identity` stands for all else that the candidates depend on (model, sampling settings, engine). A unit's id is a
    hash of it, the prompts and the seeds: the same id means the same candidates.
    """
    rows = []
    texts = zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True)
    drafts = [(qid, render(prompt, text, tokenizer), query_seed(seed, qid)) for qid, text in texts]
    for start in range(0, len(drafts), queries_per_unit):
        unit = drafts[start : start + queries_per_unit]
        unit_id = digest([identity, num_samples, unit])
        rows += [
            {"unit_id": unit_id, "qid": qid, "prompt": text, "num_samples": num_samples, "seed": query_seed_}
            for qid, text, query_seed_ in unit
        ]
    return table(rows, PLAN)


def query_seed(seed: int, qid: str) -> int:
    """A query's own seed: 31 bits of a hash, so that it does not depend on the query's neighbours."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{qid}".encode()).digest()[:4], "big") >> 1


def units(plan: pa.Table) -> list[Unit]:
    """The plan's units in order; their names sort in that order."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in plan.to_pylist():
        grouped.setdefault(row["unit_id"], []).append(row)
    return [Unit(f"{i:06d}-{unit_id}", rows) for i, (unit_id, rows) in enumerate(grouped.items())]


def batched(rows: Sequence[dict[str, Any]], size: int) -> list[Unit]:
    """Units of `size` rows whose names tell their place and content."""
    return [
        Unit(f"{start // size:06d}-{digest(rows[start : start + size])}", rows[start : start + size])
        for start in range(0, len(rows), size)
    ]
