"""Rows -> ids: what is learned, what is not, and what is left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from aqe import records
from aqe.align import tokens
from aqe.align.tokens import IGNORED, encode, load_tokens, write_tokens
from aqe.artifact import write_parquet
from aqe.errors import InputError
from tests.tools.align import dpo_rows, make_model, rsft_rows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(make_model(tmp_path_factory.mktemp("model")))


def test_prompt_and_completion_are_tokenised_apart(tokenizer: Any) -> None:
    rows = rsft_rows(4)
    kept, dead = encode("rsft", records.table(rows, records.RSFT), tokenizer, 64)
    assert dead.num_rows == 0
    for row, ids in zip(rows, kept, strict=True):
        prompt = tokenizer(row["prompt"])["input_ids"]
        completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        end = [tokenizer.eos_token_id] if row["finished"] else []
        assert ids["input_ids"] == prompt + completion + end
        assert ids["labels"] == [IGNORED] * len(prompt) + completion + end


def test_the_boundary_is_not_merged_away(tokenizer: Any) -> None:
    """A word split between prompt and completion stays split, as decoding produced it."""
    row = {**rsft_rows(1)[0], "prompt": "auth", "completion": "or", "finished": False}
    kept, _ = encode("rsft", records.table([row], records.RSFT), tokenizer, 64)
    assert len(kept[0]["input_ids"]) > len(tokenizer("author")["input_ids"])
    assert tokenizer.decode(kept[0]["input_ids"]) == "author"


def test_end_of_text_is_learned_only_where_the_candidate_ended(tokenizer: Any) -> None:
    rows = dpo_rows(12)
    kept, _ = encode("dpo", records.table(rows, records.DPO), tokenizer, 64)
    for row, ids in zip(rows, kept, strict=True):
        for side in ("chosen", "rejected"):
            assert (ids[f"{side}_ids"][-1] == tokenizer.eos_token_id) == row[f"{side}_finished"]
        assert tokenizer.eos_token_id not in ids["prompt_ids"]


def test_empty_completion_that_finished_is_the_end_of_text_alone(tokenizer: Any) -> None:
    row = {**rsft_rows(1)[0], "completion": "", "finished": True}
    kept, dead = encode("rsft", records.table([row], records.RSFT), tokenizer, 64)
    assert dead.num_rows == 0
    assert [label for label in kept[0]["labels"] if label != IGNORED] == [tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"completion": "", "finished": False}, "nothing to learn"),
        ({"prompt": ""}, "prompt has no tokens"),
        ({"prompt": None}, "prompt has no tokens"),
        ({"completion": " author" * 100}, "more than align.max_length (64)"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_dead_letters_never_cut(
    tokenizer: Any, change: dict[str, Any], reason: str
) -> None:
    good = rsft_rows(2)
    bad = {**good[0], "qid": "bad", **change}
    kept, dead = encode("rsft", records.table([good[0], bad, good[1]], records.RSFT), tokenizer, 64)
    assert len(kept) == 2
    letter = dead.to_pylist()[0]
    assert letter["stage"] == "rsft"
    assert reason in letter["reason"]
    assert json.loads(letter["row"])["qid"] == "bad"


def test_the_longest_row_that_fits_is_kept_whole(tokenizer: Any) -> None:
    rows = rsft_rows(1)
    table = records.table(rows, records.RSFT)
    length = len(encode("rsft", table, tokenizer, 999)[0][0]["input_ids"])
    assert len(encode("rsft", table, tokenizer, length)[0]) == 1
    assert encode("rsft", table, tokenizer, length - 1)[1].num_rows == 1


def test_missing_column_and_missing_end_of_text_are_named(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"missing column.*finished"):
        encode("rsft", records.table(rsft_rows(1), records.RSFT).drop_columns("finished"), tokenizer, 64)

    class NoEnd:
        eos_token_id = None

    with pytest.raises(InputError, match="end-of-text"):
        encode("rsft", records.table(rsft_rows(1), records.RSFT), NoEnd(), 64)


def test_a_file_is_encoded_as_a_stream(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rsft_rows(9)
    rows[4] = {**rows[4], "prompt": ""}
    write_parquet(records.table(rows, records.RSFT), tmp_path / "rsft.parquet")
    monkeypatch.setattr(tokens, "BATCH_ROWS", 2)
    count, dead = write_tokens("rsft", tmp_path / "rsft.parquet", tokenizer, 64, tmp_path / "tokens" / "rows.arrow")
    kept, expected = encode("rsft", records.table(rows, records.RSFT), tokenizer, 64)
    assert (count, dead) == (8, expected)
    first, second = (load_tokens(str(tmp_path / "tokens" / "rows.arrow")) for _ in range(2))
    assert first.to_list() == kept
    # TRL names the reference log-probabilities after it: the same on every rank and in every attempt.
    assert first._fingerprint == second._fingerprint
