"""In which order rows are trained on."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqe.align.trainers import WINDOW, ByLength, lengths
from aqe.config.align import AlignConfig
from tests.align.test_loss import ROWS, start, trainer_of

__all__ = ["start"]


@given(st.lists(st.integers(1, 60), max_size=300), st.integers(1, 16), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_has_every_row_once_and_sorts_no_further_than_a_window(
    tokens: list[int], batch: int, seed: int, epoch: int
) -> None:
    sampler = ByLength(tokens, batch, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert order == list(sampler)
    assert sorted(order) == list(range(len(tokens)))
    assert len(sampler) == len(tokens)
    whole = len(order) // batch * batch
    for begin in range(0, whole, WINDOW * batch):
        window = order[begin : min(begin + WINDOW * batch, whole)]
        batches = [window[i : i + batch] for i in range(0, len(window), batch)]
        # No two batches of a window overlap in length.
        spans = sorted((min(tokens[r] for r in rows), max(tokens[r] for r in rows)) for rows in batches)
        assert all(below[1] <= above[0] for below, above in pairwise(spans))


def test_orders_differ_by_seed_and_epoch() -> None:
    tokens = [i % 50 for i in range(400)]
    orders = set()
    for seed in range(3):
        sampler = ByLength(tokens, 16, seed)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 9
    # The longest do not always come first.
    first = {max(range(WINDOW), key=lambda i: tokens[order[i * 16]]) for order in orders}
    assert len(first) > 1


@pytest.mark.parametrize("kind", ["rsft", "dpo"])
def test_the_trainer_takes_its_rows_so(kind: str, start: Path, tmp_path: Path) -> None:
    trainer, rows = trainer_of(kind, start, tmp_path, AlignConfig())  # type: ignore[arg-type]
    trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps = 2, 2
    trainer._train_batch_size = 2
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, ByLength)
    tokens = lengths(trainer.train_dataset)
    assert tokens == [
        len(row["input_ids"])
        if kind == "rsft"
        else len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        for row in rows
    ]
    order = list(sampler)
    assert len(order) == ROWS
    loader = trainer.get_train_dataloader()
    for epoch in range(2):
        loader.set_epoch(epoch)
        widths = [batch["input_ids"].shape[1] for batch in loader]
        expected = ByLength(tokens, 4, trainer.args.data_seed)
        expected.set_epoch(epoch)
        rows_in_order = [tokens[row] for row in expected]
        assert widths == [max(rows_in_order[i : i + 2]) for i in range(0, ROWS, 2)]
