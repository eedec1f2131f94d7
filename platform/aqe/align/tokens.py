"""Preference rows -> what the trainers read; rows that cannot be trained on become dead letters.

The rows carry the token ids that were drawn (aqe.endings.completion_ids): nothing is tokenised here. A candidate that
was cut at the token limit has no end token, so that it does not teach the model to stop there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aqe import records
from aqe.align.arguments import Kind
from aqe.storage import put

#: kind -> completions of a row
_COMPLETIONS: Mapping[Kind, tuple[str, ...]] = {"rsft": ("completion",), "dpo": ("chosen", "rejected")}

#: Rows that are encoded at once.
BATCH_ROWS = 1_000

IGNORED = -100
"""Label of a token that is not learned (torch's cross-entropy convention)."""


def encode(kind: Kind, data: pa.Table, max_length: int) -> tuple[list[dict[str, Any]], pa.Table]:
    """Rows of `data` (records.RSFT or records.DPO) -> rows of ids, and the dead letters (records.DEAD_LETTERS).

    rsft: `input_ids` = prompt + completion, `labels` = the same with IGNORED on the prompt.
    dpo: `prompt_ids`, `chosen_ids`, `rejected_ids`.
    Raises InputError when columns are missing.
    """
    rows = records.conform(data, records.RSFT if kind == "rsft" else records.DPO, f"preferences/{kind}").to_pylist()
    names = ("prompt_ids", *(f"{name}_ids" for name in _COMPLETIONS[kind]))
    kept, dead = [], []
    for row in rows:
        if reason := _invalid(kind, row, max_length):
            dead.append({"stage": kind, "place": row["qid"], "reason": reason, "row": json.dumps(row)})
        else:
            kept.append(_labelled(row) if kind == "rsft" else {name: row[name] for name in names})
    return kept, records.table(dead, records.DEAD_LETTERS)


def _invalid(kind: Kind, row: Mapping[str, Any], max_length: int) -> str | None:
    """Why this row cannot be trained on, or None."""
    if not row["prompt_ids"]:
        return "the prompt has no tokens"
    for name in _COMPLETIONS[kind]:
        ids = row[f"{name}_ids"]
        if not ids:
            return f"{name} has no tokens: there is nothing to learn"
        length = len(row["prompt_ids"]) + len(ids)
        if length > max_length:
            return f"prompt and {name} have {length} tokens, more than align.max_length ({max_length})"
    return None


def _labelled(ids: Mapping[str, list[int]]) -> dict[str, list[int]]:
    prompt, completion = ids["prompt_ids"], ids["completion_ids"]
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def write_tokens(kind: Kind, data: Path, max_length: int, out: Path) -> tuple[int, pa.Table]:
    """Encode a Parquet file (records.RSFT or records.DPO) into an Arrow stream at `out`, whole or not at all.

    Returns the number of rows that can be trained on, and the dead letters. Reads the file as a stream: memory holds a
    batch and the dead letters. Raises as `encode` does.
    """
    names = ("input_ids", "labels") if kind == "rsft" else ("prompt_ids", "chosen_ids", "rejected_ids")
    schema = pa.schema([(name, pa.list_(pa.int64())) for name in names])
    count, dead = 0, [records.DEAD_LETTERS.empty_table()]

    def write(part: Path) -> None:
        nonlocal count
        count = 0
        del dead[1:]
        with pq.ParquetFile(data) as source, pa.ipc.new_stream(str(part), schema) as stream:
            for batch in source.iter_batches(BATCH_ROWS):
                rows, unusable = encode(kind, pa.Table.from_batches([batch]), max_length)
                stream.write_table(pa.Table.from_pylist(rows, schema=schema))
                count += len(rows)
                dead.append(unusable)

    put(out, write)
    return count, pa.concat_tables(dead)


def load_tokens(path: str) -> Any:
    """What `write_tokens` wrote, as a Hugging Face dataset.

    On disk, not in memory: TRL keeps the reference log-probabilities beside a dataset's file, and only so do all
    ranks, and a later attempt, find the same ones.
    """
    from datasets import Dataset

    return Dataset.from_file(path)
