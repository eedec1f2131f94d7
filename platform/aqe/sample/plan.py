"""The plan: which prompts are generated together, with which seeds."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aqe.artifact import GROUP_ROWS, Slices, digest
from aqe.config.sample import PromptConfig
from aqe.prompts import render
from aqe.records import PLAN, table
from aqe.storage import put
from aqe.units import Row, Unit


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

    More than six arguments, because a unit is named by all that its candidates depend on.
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


def write_plan(
    path: Path, queries: Path, prompt: PromptConfig, *, limit: int | None = None, **settings: Any
) -> list[Unit]:
    """Write the plan of the first `limit` queries (records.JUDGED) and return its units; `settings`: see make_plan.

    Memory holds some units' rows at a time, however many queries there are.
    """
    units: list[Unit] = []

    def write(part: Path) -> None:
        units.clear()
        with pq.ParquetWriter(part, PLAN) as writer:
            for start, plan in _parts(queries, prompt, limit, settings):
                writer.write_table(plan)
                units.extend(_units(plan["unit_id"].to_pylist(), start, len(units)))

    put(path, write)
    return units


def _parts(
    queries: Path, prompt: PromptConfig, limit: int | None, settings: dict[str, Any]
) -> Iterator[tuple[int, pa.Table]]:
    """Number of its first query, and plan, of some whole units after the other."""
    rows = Slices(queries)
    total = len(rows) if limit is None else min(limit, len(rows))
    step = max(1, GROUP_ROWS // settings["queries_per_unit"]) * settings["queries_per_unit"]
    for start in range(0, total, step):
        yield start, make_plan(rows(start, min(start + step, total)), prompt, **settings)


def _units(unit_ids: list[str], start: int, number: int) -> Iterator[Unit]:
    """The units of a part of the plan whose first query has the number `start`, its first unit the number `number`."""
    begin = 0
    for i, unit_id in enumerate(unit_ids, 1):
        if i == len(unit_ids) or unit_ids[i] != unit_id:
            yield Unit(f"{number:09d}-{unit_id}", start + begin, start + i)
            number, begin = number + 1, i


class PlanReader:
    """Rows of a unit from the plan."""

    def __init__(self, plan: Path) -> None:
        self._rows = Slices(plan)

    def __call__(self, unit: Unit) -> list[Row]:
        rows: list[Row] = self._rows(unit.start, unit.stop).to_pylist()
        return rows
