"""How far a model went from its reference: exact KL over the vocabulary and changes of log-probability, all in nats.

Measured on fixed texts: the completions of the first rows that are trained on, the same ones for every run on the same
data. While training goes on the reference is a file of log-probabilities, because a training worker cannot hold a
second model: under ZeRO-3 every model that is loaded there is sharded.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aqe.align.arguments import Kind
from aqe.align.tokens import IGNORED, load_tokens
from aqe.align.worker import load_model
from aqe.errors import ConfigError
from aqe.storage import put

if TYPE_CHECKING:
    import torch

MEASURED_ROWS = 32
"""Rows on which the finished model is measured."""
AT_ONCE = 1024
"""Tokens of these that are measured together: the weights are read once for all of them."""
COMPARED_ROWS = 4
"""Rows on which an exported model is held against the one that was trained."""
CURVE_TOKENS = 128
"""Completion tokens on which the curve is measured: the reference's file holds the whole vocabulary for each."""
RANDOM = 1e-3
"""Nats a token between a model that trains and the same one that does not, from which it counts as random. Where it is
not, both run the same kernels, and are equal but for rounding."""


def divergence(kind: Kind, model: Any, reference: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """How far `model` went from `reference` on `rows` (of `tokens.encode`).

    `kl_per_token`: exact KL(model || reference) over the vocabulary, mean over the completion tokens (dpo: of the
    chosen texts). `logp_change*`: log-probability of a whole completion minus the reference's, mean over the rows.
    """
    kl_sum, tokens = 0.0, 0
    changes: dict[str, list[float]] = {}
    texts = list(_completions(kind, rows))
    of = [(ids, length) for _, _, ids, length in texts]
    both = zip(texts, completion_logprobs(model, of), completion_logprobs(reference, of), strict=True)
    for (name, learned, ids, length), p, q in both:
        targets = p.new_tensor(ids[-length:]).long()[:, None]
        changes.setdefault(name, []).append(float((p - q).gather(-1, targets).double().sum()))
        if learned:
            kl_sum, tokens = kl_sum + kl(p, q), tokens + length
    return {"kl_per_token": kl_sum / tokens} | {name: sum(v) / len(v) for name, v in changes.items()}


def _completions(kind: Kind, rows: list[dict[str, Any]]) -> Iterator[tuple[str, bool, list[int], int]]:
    """(name of the statistic, whether the text is learned, ids of prompt and completion, tokens of the completion)."""
    for row in rows:
        if kind == "rsft":
            yield "logp_change", True, row["input_ids"], sum(label != IGNORED for label in row["labels"])
        else:
            for side in ("chosen", "rejected"):
                ids: list[int] = row[f"{side}_ids"]
                yield f"logp_change_{side}", side == "chosen", row["prompt_ids"] + ids, len(ids)


def completion_logprobs(model: Any, texts: Sequence[tuple[list[int], int]]) -> Iterator["torch.Tensor"]:
    """Of each (ids, length): float32 log-probabilities (length, vocabulary) at the last `length` tokens of `ids`.

    As many texts together as AT_ONCE allows. Short ones are filled up at their end, with any token and no mask: a
    causal model does not look ahead.
    """
    group: list[tuple[list[int], int]] = []
    longest = 0
    for text in texts:
        longest = max(longest, len(text[0]))
        if group and longest * (len(group) + 1) > AT_ONCE:
            yield from _together(model, group)
            group, longest = [], len(text[0])
        group.append(text)
    if group:
        yield from _together(model, group)


def _together(model: Any, texts: Sequence[tuple[list[int], int]]) -> Iterator["torch.Tensor"]:
    import torch

    longest = max(len(ids) for ids, _ in texts)
    kept = longest - min(len(ids) - length - 1 for ids, length in texts)
    with torch.no_grad():
        inputs = torch.tensor([ids + ids[-1:] * (longest - len(ids)) for ids, _ in texts], device=model.device)
        # Position i predicts token i + 1; only the completions' positions go through the vocabulary.
        logits: torch.Tensor = model(inputs, logits_to_keep=kept, use_cache=False).logits[:, -kept:]
    for row, (ids, length) in zip(logits, texts, strict=True):
        first = len(ids) - length - 1 - (longest - kept)
        yield row[first : first + length].float().log_softmax(-1)


def completion_logps(kind: Kind, model: Any, rows: list[dict[str, Any]]) -> list[float]:
    """Mean log-probability of a token, for each completion of `rows` (of `tokens.encode`). No dropout."""
    training = model.training
    model.eval()
    means = []
    for _, _, ids, length in _completions(kind, rows):
        # Alone: what trained and what was exported are compared, by the same arithmetic.
        (logprobs,) = completion_logprobs(model, [(ids, length)])
        targets = logprobs.new_tensor(ids[-length:]).long()[:, None]
        means.append(float(logprobs.gather(-1, targets).double().mean()))
    model.train(training)
    return means


def kl(p: "torch.Tensor", q: "torch.Tensor") -> float:
    """Sum over positions of KL(p || q), both log-probabilities (positions, vocabulary)."""
    import torch

    return float((p.exp() * (p - q)).sum(dtype=torch.float64))


def curve_texts(kind: Kind, rows: list[dict[str, Any]]) -> list[tuple[list[int], int]]:
    """(ids, completion tokens) of the first rows' learned texts: one, and as many more as CURVE_TOKENS allow."""
    texts: list[tuple[list[int], int]] = []
    total = 0
    for _, learned, ids, length in _completions(kind, rows):
        if not learned:
            continue
        total += length
        if texts and total > CURVE_TOKENS:
            break
        texts.append((ids, length))
    return texts


def write_reference(kind: Kind, *, start: str, tokens: str, out: str, bfloat16: bool, use_gpu: bool) -> None:
    """Write the start model's log-probabilities on `curve_texts` (safetensors, one tensor a text).

    Raises ConfigError for a model that DPO cannot train, because it is another one while it trains.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    device, dtype = "cuda" if use_gpu else "cpu", torch.bfloat16 if bfloat16 else torch.float32
    rows = load_tokens(tokens)
    texts = curve_texts(kind, rows.select(range(min(MEASURED_ROWS, len(rows)))).to_list())

    def measured(model: Any) -> dict[str, torch.Tensor]:
        return {str(i): logprobs.cpu() for i, logprobs in enumerate(completion_logprobs(model, texts))}

    reference = measured(AutoModelForCausalLM.from_pretrained(start, dtype=dtype).to(device).eval())
    if kind == "dpo":
        policy = measured(load_model(start, kind).to(device, dtype).train())
        change = sum(kl(policy[i], reference[i]) for i in reference) / sum(length for _, length in texts)
        if not change < RANDOM:
            raise ConfigError(
                f"align.stages: DPO cannot train the model in {start}. Even without dropout it computes something else "
                f"while it trains (a KL of {change:.2g} nats a token), so that it would differ from its own reference "
                "before the first step. Set align.stages to [rsft], or name another model."
            )
    put(Path(out), lambda part: save_file(reference, part))
