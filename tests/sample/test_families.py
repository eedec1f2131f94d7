"""Both engines on a tiny model of each family: windows, caches, positions, tokenizers and end tokens as in real ones."""

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from aqe.artifact import read_parquet
from aqe.prompts import token_ids
from aqe.sample.engine import Request, Sampling, continuation
from aqe.sample.engine_transformers import TransformersEngine
from tests.tools.families import EACH, FAMILIES, WINDOW, families_root, make_family, one_thread  # noqa: F401
from tests.tools.family_samples import CONFIG, NUM_SAMPLES, plan, transformers_samples, vllm_samples

TOKENS = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families_root(tmp_path_factory)


def reference(made: TransformersEngine, prompt: str) -> tuple[int, ...]:
    """The library's greedy continuation of one prompt, alone and so without padding."""
    ids = torch.tensor([token_ids(made.tokenizer, prompt)])
    out = made.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=sorted(made.ends),
        pad_token_id=0,
    )
    return tuple(out[0, ids.shape[1] :].tolist())


def drawn(name: str, directory: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_parquet(directory / f"{name}.parquet").to_pylist()
    return rows


@pytest.mark.parametrize("name", EACH)
def test_greedy_is_the_librarys_greedy(name: str, root: Path) -> None:
    path = make_family(name, root)
    prompts = [row["prompt"] for row in plan(name, root)]
    made = TransformersEngine(str(path), CONFIG, Sampling(TOKENS))
    wanted = [reference(made, prompt) for prompt in prompts]
    assert len(set(wanted)) > len(prompts) / 2, "a model that hears its prompt"
    assert sum(len(token_ids(made.tokenizer, prompt)) > WINDOW for prompt in prompts) >= 3
    # Together, in several batches, and those alone that begin alike: their beginning is computed once.
    for start, batch in ((0, 256), (0, 3), (len(prompts) // 2, 256)):
        made.max_batch = batch
        answers = made.generate([Request(prompt, 2, 0) for prompt in prompts[start:]])
        assert [[g if isinstance(g, str) else g.token_ids for g in answer] for answer in answers] == [
            [ids, ids] for ids in wanted[start:]
        ]


@pytest.mark.parametrize("name", EACH)
def test_a_candidate_ends_with_the_token_that_ended_it(name: str, root: Path) -> None:
    made = TransformersEngine(str(make_family(name, root)), CONFIG, Sampling(TOKENS))
    tokenizer, family = made.tokenizer, FAMILIES[name]
    ends = set(tokenizer.convert_tokens_to_ids([*family.ends, tokenizer.eos_token]))
    assert made.ends == ends
    prompts = {row["qid"]: token_ids(tokenizer, row["prompt"]) for row in plan(name, root)}
    reasons: Counter[str] = Counter()
    last = set()
    for row in drawn(name, transformers_samples(name, root)):
        *before, end = row["token_ids"]
        assert row["num_tokens"] == len(before) + 1 <= TOKENS
        assert ends.isdisjoint(before)
        if row["stop_at"] is not None:
            reasons["text"] += 1
            assert row["finish_reason"] == "stop"
            text = continuation(tokenizer, prompts[row["qid"]], row["token_ids"][: row["stop_at"]])
            assert text.startswith(row["raw"])
        else:
            reasons[row["finish_reason"]] += 1
            assert (end in ends) == (row["finish_reason"] == "stop")
            last |= {end} & ends
    assert set(reasons) == {"text", "stop", "length"}, "the models are made so that all three occur"
    assert tokenizer.convert_tokens_to_ids(family.turn or tokenizer.eos_token) in last


@pytest.mark.parametrize("name", EACH)
def test_prompts_reach_the_model_as_they_are_trained(name: str, root: Path) -> None:
    """The tokenizer's own beginning once: also where the chat template writes it."""
    made = TransformersEngine(str(make_family(name, root)), CONFIG, Sampling(1))
    fed: list[list[int]] = []
    made.model.register_forward_pre_hook(lambda module, args: fed.append(args[0][0].tolist()))
    begins = made.tokenizer("a")["input_ids"][0]
    for row in plan(name, root):
        made.generate([Request(row["prompt"], 1, 0)])
        ids = token_ids(made.tokenizer, row["prompt"])
        assert fed.pop() == ids
        assert not fed
        if made.tokenizer.bos_token and begins == made.tokenizer.bos_token_id:
            assert ids[0] == begins != ids[1]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
@pytest.mark.parametrize("name", EACH)
def test_both_engines_mean_the_same(name: str, root: Path) -> None:
    make_family(name, root)
    directory, family = vllm_samples(name, root), FAMILIES[name]
    if family.not_vllm is not None:
        assert family.not_vllm in (directory / f"{name}.error").read_text()
        return
    made = TransformersEngine(str(make_family(name, root)), CONFIG, Sampling(1))
    prompts = {row["qid"]: token_ids(made.tokenizer, row["prompt"]) for row in plan(name, root)}
    theirs, ours = drawn(name, directory), drawn(name, transformers_samples(name, root))
    assert [(row["qid"], row["sample_idx"]) for row in theirs] == [(row["qid"], row["sample_idx"]) for row in ours]
    same = ("token_ids", "stop_at", "finish_reason")
    for their, own in zip(theirs[::NUM_SAMPLES], ours[::NUM_SAMPLES], strict=True):
        # The first is the greedy one; drawn ones cannot agree: each engine has its own random numbers.
        assert their["logprob"] == pytest.approx(own["logprob"], abs=2e-3)
        assert [their[key] for key in same] == [own[key] for key in same]
        # Bytes that are no character: vLLM decodes token by token, tokenizers a run of byte tokens at once.
        text = continuation(made.tokenizer, prompts[own["qid"]], own["token_ids"][: own["stop_at"]])
        assert their["raw"] == own["raw"] or "\ufffd" in text
    fed = json.loads((directory / f"{name}.json").read_text())
    # The greedy candidate of each prompt is a request of its own.
    assert fed == [ids for ids in prompts.values() for _ in range(2)]
    for row in theirs:
        *before, end = row["token_ids"]
        assert made.ends.isdisjoint(before)
        assert (end in made.ends) == (row["finish_reason"] == "stop" and row["stop_at"] is None)
