"""Rows -> ids: what is learned, what is not, and what is left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from aqe import records
from aqe.align import tokens
from aqe.align.tokens import IGNORED, encode, load_tokens, write_tokens
from aqe.artifact import write_parquet
from aqe.errors import InputError
from tests.tools.align import dpo_rows, rsft_rows


def test_ids_are_taken_as_they_were_drawn() -> None:
    """However the texts would be tokenised."""
    drawn = {"prompt_ids": [5, 6], "completion_ids": [7, 7, 1], "finished": True}
    kept, dead = encode("rsft", records.table([rsft_rows(1)[0] | drawn], records.RSFT), 64)
    assert dead.num_rows == 0
    assert kept == [{"input_ids": [5, 6, 7, 7, 1], "labels": [IGNORED, IGNORED, 7, 7, 1]}]
    drawn = {"prompt_ids": [5, 6], "chosen_ids": [9, 8], "rejected_ids": [7]}
    assert encode("dpo", records.table([dpo_rows(1)[0] | drawn], records.DPO), 64)[0] == [drawn]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"completion_ids": []}, "nothing to learn"),
        ({"completion_ids": None}, "nothing to learn"),
        ({"prompt_ids": []}, "prompt has no tokens"),
        ({"prompt_ids": None}, "prompt has no tokens"),
        ({"completion_ids": [7] * 100}, "more than align.max_length (64)"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_dead_letters_never_cut(change: dict[str, Any], reason: str) -> None:
    good = rsft_rows(2)
    bad = {**good[0], "qid": "bad", **change}
    kept, dead = encode("rsft", records.table([good[0], bad, good[1]], records.RSFT), 64)
    assert len(kept) == 2
    letter = dead.to_pylist()[0]
    assert letter["stage"] == "rsft"
    assert reason in letter["reason"]
    assert json.loads(letter["row"])["qid"] == "bad"


def test_the_longest_row_that_fits_is_kept_whole() -> None:
    rows = rsft_rows(1)
    table = records.table(rows, records.RSFT)
    length = len(encode("rsft", table, 999)[0][0]["input_ids"])
    assert len(encode("rsft", table, length)[0]) == 1
    assert encode("rsft", table, length - 1)[1].num_rows == 1


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InputError, match=r"missing column.*completion_ids"):
        encode("rsft", records.table(rsft_rows(1), records.RSFT).drop_columns("completion_ids"), 64)


def test_a_file_is_encoded_as_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rsft_rows(9)
    rows[4] = {**rows[4], "prompt_ids": []}
    write_parquet(records.table(rows, records.RSFT), tmp_path / "rsft.parquet")
    monkeypatch.setattr(tokens, "BATCH_ROWS", 2)
    count, dead = write_tokens("rsft", tmp_path / "rsft.parquet", 64, tmp_path / "tokens" / "rows.arrow")
    kept, expected = encode("rsft", records.table(rows, records.RSFT), 64)
    assert (count, dead) == (8, expected)
    first, second = (load_tokens(str(tmp_path / "tokens" / "rows.arrow")) for _ in range(2))
    assert first.to_list() == kept
    # TRL names the reference log-probabilities after it: the same on every rank and in every attempt.
    assert first._fingerprint == second._fingerprint
