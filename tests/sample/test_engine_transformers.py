"""The transformers engine: against the library's own generate, against statistics, and against itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from aqe.base_model import resolve_model
from aqe.config.data import ModelConfig
from aqe.config.sample import EngineConfig
from aqe.sample import engine_transformers
from aqe.sample.engine import Generated, Request, Sampling, continuation, tokens_of
from aqe.sample.engine_transformers import TransformersEngine, draw
from tests.tools import tiny_model

PROMPTS = ["a", "who wrote carmen?", "what is the capital of australia and why", "ab\ncd", "a"]
DRAWN = Sampling(max_tokens=20, temperature=1.3, top_k=30, include_greedy=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("tiny"))


def engine(path: Path, sampling: Sampling, **config: Any) -> TransformersEngine:
    return TransformersEngine(str(path), EngineConfig(max_model_len=200, dtype="float32", **config), sampling)


def generate(made: TransformersEngine, prompts: list[str], num_samples: int = 1) -> list[list[Generated]]:
    answers = made.generate([Request(prompt, num_samples, seed) for seed, prompt in enumerate(prompts)])
    assert not any(isinstance(answer, str) for answer in answers)
    return [answer for answer in answers if not isinstance(answer, str)]


def reference(made: TransformersEngine, prompt: str) -> str:
    """The library's greedy continuation of one prompt, alone and so without padding."""
    ids = made.tokenizer(prompt, return_tensors="pt").to(made.device)
    out = made.model.generate(**ids, do_sample=False, max_new_tokens=made.sampling.max_tokens)[0].tolist()
    new = out[ids["input_ids"].shape[1] :]
    return str(made.tokenizer.decode(new, skip_special_tokens=True))


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("max_batch", [2, 256])
def test_greedy_is_the_librarys_greedy(tmp_path: Path, kind: str, max_batch: int) -> None:
    # 80 tokens: more than the room that a cache makes at once.
    made = engine(tiny_model.save(tmp_path, kind), Sampling(80), max_batch=max_batch)
    answers = generate(made, PROMPTS, 2)
    assert [[g.raw for g in answer] for answer in answers] == [[reference(made, p)] * 2 for p in PROMPTS]
    assert all(len(g.raw) + (g.finish_reason == "stop") == g.num_tokens for answer in answers for g in answer)


def test_greedy_of_a_real_model() -> None:
    path = resolve_model(ModelConfig()).path
    made = engine(path, Sampling(12))
    prompts = ["The capital of France is", "what is gold ? To answer this question, we need to know", "Once"]
    answers = [answer[0].raw for answer in generate(made, prompts)]
    assert answers == [reference(made, p) for p in prompts]
    assert answers[0].startswith(" Paris")


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
def test_what_all_prompts_begin_with_is_computed_once_and_changes_nothing(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "question: who wrote it? answer: "
    path = tiny_model.save(tmp_path, kind)
    # One of them is the beginning of the others.
    prompts = [head, *(head + prompt for prompt in PROMPTS)]
    made = engine(path, Sampling(30))
    answers = generate(made, prompts, 2)
    assert [[g.raw for g in answer] for answer in answers] == [[reference(made, p)] * 2 for p in prompts]
    assert made._prefix is not None and len(made._prefix[0]) == len(head) - 1
    drawn = generate(engine(path, DRAWN, max_batch=16), prompts, 9)
    again = engine(path, DRAWN, max_batch=16)
    generate(again, PROMPTS, 3)
    assert generate(again, prompts, 9) == drawn, "nothing that was generated before may show"
    monkeypatch.setattr(engine_transformers, "_SHARED", 10_000)
    apart = generate(engine(path, DRAWN, max_batch=16), prompts, 9)
    assert [[g.raw for g in answer] for answer in apart] == [[g.raw for g in answer] for answer in drawn]
    logprobs = [[g.logprob for answer in made for g in answer] for made in (apart, drawn)]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3)


def test_long_prompts_are_computed_in_groups(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(tiny, Sampling(10))
    together = generate(made, PROMPTS)
    monkeypatch.setattr(engine_transformers, "_PREFILL_TOKENS", 40)
    assert len(list(made._groups(dict(enumerate([[1] * 17, [1], [1] * 40, [1], [1]]))))) == 3
    apart = generate(made, PROMPTS)
    assert [a[0].raw for a in together] == [a[0].raw for a in apart]


def test_same_requests_give_the_same_bits(tiny: Path) -> None:
    made = engine(tiny, DRAWN, max_batch=16)
    first = generate(made, PROMPTS, 9)
    generate(made, PROMPTS[1:], 3)
    assert generate(made, PROMPTS, 9) == first
    assert generate(engine(tiny, DRAWN, max_batch=16), PROMPTS, 9) == first


def test_a_request_does_not_depend_on_the_others(tiny: Path) -> None:
    made = engine(tiny, DRAWN, max_batch=16)
    together = made.generate([Request(prompt, 9, seed) for seed, prompt in enumerate(PROMPTS)])
    for seed, prompt in enumerate(PROMPTS):
        (alone,) = made.generate([Request(prompt, 9, seed)])
        assert [g.raw for g in alone if not isinstance(g, str)] == [
            g.raw for g in together[seed] if not isinstance(g, str)
        ]


def test_candidates_differ_and_the_first_is_greedy(tiny: Path) -> None:
    drawn = generate(engine(tiny, DRAWN), PROMPTS, 20)
    greedy = generate(engine(tiny, Sampling(DRAWN.max_tokens)), PROMPTS)
    assert [answer[0].raw for answer in drawn] == [answer[0].raw for answer in greedy]
    assert all(len({g.raw for g in answer}) > 10 for answer in drawn)
    # The same prompt with another seed.
    assert [g.raw for g in drawn[0][1:]] != [g.raw for g in drawn[4][1:]]
    reasons = {g.finish_reason for answer in drawn for g in answer}
    assert reasons == {"stop", "length"}
    # One character a token, and the end-of-text token where it ended by itself.
    assert all(len(g.raw) + (g.finish_reason == "stop") == g.num_tokens <= 20 for answer in drawn for g in answer)


@pytest.mark.parametrize("top_k", [8, 0])
def test_first_tokens_follow_the_models_distribution(tiny: Path, top_k: int) -> None:
    made = engine(tiny, Sampling(1, temperature=0.8, top_k=top_k), max_batch=4096)
    answer = generate(made, ["carmen"], 4000)[0]
    logits = made.model(**made.tokenizer("carmen", return_tensors="pt").to(made.device)).logits[0, -1].double().cpu()
    kept = logits.topk(top_k or len(logits))
    expected = torch.zeros_like(logits).index_copy(0, kept.indices, (kept.values / 0.8).softmax(0)) * len(answer)
    drawn = [tiny_model.CHARACTERS.index(g.raw) if g.raw else tiny_model.END for g in answer]
    counts = torch.bincount(torch.tensor(drawn), minlength=len(logits))
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    observed = [*counts[often].tolist(), counts[~often].sum().item()]
    wanted = [*expected[often].tolist(), expected[~often].sum().item()]
    pairs = [(o, w) for o, w in zip(observed, wanted, strict=True) if w > 0]
    assert chisquare(*zip(*pairs, strict=True)).pvalue > 0.001


@pytest.mark.parametrize("top_k", [0, 4])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_k: int) -> None:
    logits = torch.tensor([[0.1, 0.5, 0.05, 0.35]]).log().repeat(1001, 1)
    uniform = torch.linspace(0, 1, 1002, dtype=torch.float64)[:-1]
    drawn = {p: draw(logits, uniform, Sampling(1, 1.0, top_k, p)) for p in (0.3, 0.6, 0.9, 1.0)}
    assert {p: set(tokens.tolist()) for p, tokens in drawn.items()} == {
        0.3: {1},
        0.6: {1, 3},
        0.9: {0, 1, 3},
        1.0: {0, 1, 2, 3},
    }
    # What is kept is drawn in proportion.
    assert (drawn[0.6] == 1).double().mean().item() == pytest.approx(0.5 / 0.85, abs=0.002)


def test_logprob_is_the_models_own(tiny: Path) -> None:
    made = engine(tiny, DRAWN)
    exact = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
    for prompt, answer in zip(PROMPTS, generate(made, PROMPTS, 12), strict=True):
        before = made.tokenizer(prompt)["input_ids"]
        for g in answer:
            new = list(g.token_ids)
            assert new == (made.tokenizer(g.raw)["input_ids"] if g.raw else []) + [tiny_model.END] * (
                g.finish_reason == "stop"
            )
            logprobs = exact(torch.tensor([before + new])).logits[0, len(before) - 1 : -1].log_softmax(-1)
            assert g.logprob == pytest.approx(logprobs.gather(1, torch.tensor(new)[:, None]).sum().item(), abs=1e-4)


def test_stop_text_ends_a_candidate_and_is_left_out(tiny: Path) -> None:
    free = generate(engine(tiny, Sampling(30)), PROMPTS)
    whole = [answer[0].raw for answer in free]
    stops = (whole[1][5:7], "never in there")
    ended = generate(engine(tiny, Sampling(30, stop=stops)), PROMPTS)
    assert ended[1][0].finish_reason == "stop"
    for text, (g,) in zip(whole, ended, strict=True):
        assert g.raw == text.split(stops[0])[0]
        ended_alone = stops[0] not in text and g.finish_reason == "stop"
        assert g.num_tokens == len(g.raw) + (2 if stops[0] in text else int(ended_alone))
        # One token a character: those before the stop text are the text's.
        assert g.stop_at == (len(g.raw) if stops[0] in text else None)
        assert tiny_model.tokenizer().decode(g.token_ids[: g.stop_at], skip_special_tokens=True) == g.raw


def test_prompts_that_cannot_be_served_have_a_reason(tiny: Path) -> None:
    made = engine(tiny, Sampling(20))
    long, empty, good = made.generate([Request("x" * 181, 2, 0), Request(" ", 2, 0), Request("x" * 180, 2, 0)])
    assert isinstance(long, str) and "181 tokens" in long and "200" in long
    assert empty == "the prompt is empty"
    assert not isinstance(good, str) and len(good) == 2
    assert made.generate([]) == []


def test_leading_blank_is_kept() -> None:
    # Like sentencepiece: the blank belongs to the word, and decoding drops the first one of a text.
    core = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "c": 2, "<end>": 3}, unk_token="<end>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    assert tokenizer.decode([1]) == "b"
    assert continuation(tokenizer, [0], [1, 2]) == " bc"


def test_tokens_before_a_stop_text_are_those_that_hold_the_text() -> None:
    """The last one may hold the stop text's beginning too: it was drawn whole."""
    core = Tokenizer(models.WordLevel({" yes": 0, "!\n": 1, "\n": 2, "!": 3, "<end>": 4}, unk_token="<end>"))
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    assert tokens_of(tokenizer, [0], [0, 3, 2], " yes!") == 2
    assert tokens_of(tokenizer, [0], [0, 1, 2], " yes!") == 2
    assert tokens_of(tokenizer, [0], [0, 1], " yes") == 1
    assert tokens_of(tokenizer, [0], [2], "") == 0
    # A character in pieces is there when its last one is.
    spelt = AutoTokenizer.from_pretrained(resolve_model(ModelConfig()).path)
    ids = spelt(" caf\u00e9 \u2603", add_special_tokens=False)["input_ids"]
    assert tokens_of(spelt, ids[:1], ids, " caf\u00e9 \u2603") == len(ids)
