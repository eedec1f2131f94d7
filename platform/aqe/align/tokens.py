"""Preference rows -> token ids, exactly as decoding saw them; rows that cannot be trained on become dead letters.

Prompt and completion are tokenised apart and their ids joined. The end-of-text id is taught only where the candidate
ended by itself (`finished`): one that was cut at the token limit must not teach the model to stop there.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from aqe import records
from aqe.align.arguments import Kind
from aqe.errors import InputError
from aqe.prompts import token_ids
from aqe.storage import put

#: kind -> (text column, finished column, name of the ids)
_PARTS = {
    "rsft": (("completion", "finished", "completion_ids"),),
    "dpo": (("chosen", "chosen_finished", "chosen_ids"), ("rejected", "rejected_finished", "rejected_ids")),
}

#: Rows that are encoded at once.
BATCH_ROWS = 1_000

IGNORED = -100
"""Label of a token that is not learned (torch's cross-entropy convention)."""


def encode(kind: Kind, data: pa.Table, tokenizer: Any, max_length: int) -> tuple[list[dict[str, Any]], pa.Table]:
    """Rows of `data` (records.RSFT or records.DPO) -> rows of ids, and the dead letters (records.DEAD_LETTERS).

    rsft: `input_ids` = prompt + completion, `labels` = the same with IGNORED on the prompt.
    dpo: `prompt_ids`, `chosen_ids`, `rejected_ids`.
    Raises InputError when columns are missing or the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the model's tokenizer has no end-of-text token (eos_token), so no expansion could ever end")
    rows = records.conform(data, records.RSFT if kind == "rsft" else records.DPO, f"preferences/{kind}").to_pylist()
    prompts = [token_ids(tokenizer, row["prompt"] or "") for row in rows]
    encoded: list[dict[str, list[int]]] = [{"prompt_ids": ids} for ids in prompts]
    for text, finished, name in _PARTS[kind]:
        for row, ids, into in zip(rows, _ids(tokenizer, [row[text] for row in rows]), encoded, strict=True):
            into[name] = [*ids, tokenizer.eos_token_id] if row[finished] else ids
    kept, dead = [], []
    for row, parts in zip(rows, encoded, strict=True):
        if reason := _invalid(kind, row, parts, max_length):
            dead.append({"stage": kind, "reason": reason, "row": json.dumps(row)})
        else:
            kept.append(_labelled(parts) if kind == "rsft" else parts)
    return kept, records.table(dead, records.DEAD_LETTERS)


def _ids(tokenizer: Any, texts: list[str | None]) -> list[list[int]]:
    """Token ids of each completion; nothing is put before a text that continues another."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer([text or "" for text in texts], add_special_tokens=False)["input_ids"]
    return ids


def _invalid(kind: Kind, row: Mapping[str, Any], ids: Mapping[str, list[int]], max_length: int) -> str | None:
    """Why this row cannot be trained on, or None."""
    if row["prompt"] is None or not ids["prompt_ids"]:
        return "the prompt has no tokens"
    for text, _, name in _PARTS[kind]:
        if row[text] is None or not ids[name]:
            return f"{text} has no tokens and was not finished: there is nothing to learn"
        length = len(ids["prompt_ids"]) + len(ids[name])
        if length > max_length:
            return f"prompt and {text} have {length} tokens, more than align.max_length ({max_length})"
    return None


def _labelled(ids: Mapping[str, list[int]]) -> dict[str, list[int]]:
    prompt, completion = ids["prompt_ids"], ids["completion_ids"]
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def write_tokens(kind: Kind, data: Path, tokenizer: Any, max_length: int, out: Path) -> tuple[int, pa.Table]:
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
                rows, unusable = encode(kind, pa.Table.from_batches([batch]), tokenizer, max_length)
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
