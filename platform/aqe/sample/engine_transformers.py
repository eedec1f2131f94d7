"""Generation with a transformers model: works wherever torch does.

The model is the library's own; the loop around it is made for many candidates of few prompts. What all prompts begin
with is computed once, each prompt once, and its key-value cache expanded to the candidates; rows that have ended leave
the batch, and the cut to the top k comes before the softmax.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicLayer

from aqe.config.sample import EngineConfig
from aqe.endings import end_ids
from aqe.prompts import token_ids
from aqe.reasoning import Reasoning
from aqe.sample.engine import Generated, Request, Sampling, Watch, continuation, precision, refusal, tokens_of

_PREFILL_TOKENS = 32_768
"""Prompt tokens computed together, padding included: bounds the memory of long prompts."""
_SHARED = 16
"""Fewest tokens that are worth computing apart when all prompts begin with them, as few-shot prompts do."""
_ROOM = 32
"""Tokens for which a cache makes room at once."""


@dataclass
class _Row:
    """One candidate on its way."""

    prompt: int
    """Place of its prompt in the group."""
    prompt_ids: list[int]
    greedy: bool
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    text: str | None = None
    """Set when a stop text has ended it."""
    finish: Literal["stop", "length"] | None = None


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values (rows, heads, tokens, size) with room for more.

    The library's own layer copies all of them for every token, which costs a tenth of the throughput. `keys` and
    `values` stay views of what is filled, so that all else is inherited; whatever replaces them drops the room.
    """

    keys: torch.Tensor
    values: torch.Tensor
    _room: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def around(cls, layer: DynamicLayer) -> "_RoomyLayer":
        roomy = cls()
        roomy.__dict__.update(layer.__dict__)
        return roomy

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if self._room is None or end > self._room[0].shape[2]:
            self._room = _with_room(self.keys, end), _with_room(self.values, end)
        keys, values = self._room
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._room = None


def _with_room(old: torch.Tensor, end: int) -> torch.Tensor:
    rows, heads, filled, size = old.shape
    new = old.new_empty(rows, heads, end + _ROOM, size)
    new[:, :, :filled] = old
    return new


class TransformersEngine:
    """Implements `aqe.sample.engine.Engine`.

    `logprob` sums the model's own log-probabilities (full vocabulary, no temperature, no cut) of every token drawn, the
    end-of-text token included, as vLLM's `cumulative_logprob` does; `num_tokens` counts the same tokens. A last
    character that was cut inside its bytes is left out of `raw`.
    """

    name = "transformers"

    def __init__(self, model_path: str, config: EngineConfig, sampling: Sampling) -> None:
        self.sampling = sampling
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, precision(config, model_path, use_gpu=self.device.type == "cuda"))
        self.tokenizer = AutoTokenizer.from_pretrained(model_path)
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype).to(self.device).eval()
        self.max_batch = config.max_batch
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.max_len = min(config.max_model_len, limit or config.max_model_len)
        self.ends = end_ids(self.tokenizer, self.model.generation_config.eos_token_id)
        self._reasoning = Reasoning(self.tokenizer)
        self.prompt_tokens: Counter[str] = Counter()
        self._prefix: tuple[list[int], Any] | None = None
        """The newest beginning that prompts shared, and its cache."""
        self._windowed = False

    def with_sampling(self, sampling: Sampling) -> "TransformersEngine":
        """The same model, decoded otherwise."""
        other = copy.copy(self)
        other.sampling = sampling
        return other

    def stream(
        self, batches: Iterator[tuple[str, Sequence[Request]]], in_flight: int
    ) -> Iterator[tuple[str, list[list[Generated] | str]]]:
        """One batch after the other, whatever `in_flight` is."""
        return ((name, self.generate(requests)) for name, requests in batches)

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], watch: Watch | None = None) -> list[list[Generated] | str]:
        """See `Engine.generate`. Draws depend on a request's seed, candidate and step alone."""
        self.prompt_tokens = Counter()
        prompts = [self._encode(request.prompt) for request in requests]
        results: list[list[Generated] | str] = [p if isinstance(p, str) else [] for p in prompts]
        served = {i: p for i, p in enumerate(prompts) if not isinstance(p, str)}
        for group in self._groups(served):
            ids = [served[i] for i in group]
            of_group = [requests[i] for i in group]

            def look(rows: list[_Row], group: list[int] = group) -> None:
                if watch is None:
                    return
                watch.step()
                for row in rows:
                    if row.finish is None and not watch.wanted(group[row.prompt]):
                        row.finish = "length"

            for place, rows in enumerate(self._candidates(ids, of_group, look)):
                results[group[place]] = [self._finished(requests[group[place]].prompt, row) for row in rows]
        asked = sum(len(ids) * requests[i].num_samples for i, ids in served.items())
        self.prompt_tokens["cached"] = asked - self.prompt_tokens["computed"]
        return results

    def _encode(self, prompt: str) -> list[int] | str:
        ids = token_ids(self.tokenizer, prompt)
        return refusal(prompt, ids, self.sampling.max_tokens, self.max_len) or ids

    def _groups(self, prompts: dict[int, list[int]]) -> Iterator[list[int]]:
        """Requests whose prompts are computed together."""
        group: list[int] = []
        longest = 0
        for i, ids in prompts.items():
            longest = max(longest, len(ids))
            if group and (len(group) == self.max_batch or longest * (len(group) + 1) > _PREFILL_TOKENS):
                yield group
                group, longest = [], len(ids)
            group.append(i)
        if group:
            yield group

    def _candidates(
        self, prompts: list[list[int]], requests: list[Request], look: Callable[[list[_Row]], None]
    ) -> list[list[_Row]]:
        """All candidates of a group of prompts, in batches of equal size, whose rows `look` sees after each step."""
        prefilled, logits, mask = self._prefill(prompts)
        zero, first = self.sampling.temperature == 0, self.sampling.include_greedy
        candidates = [
            [_Row(i, prompts[i], zero or (first and n == 0)) for n in range(request.num_samples)]
            for i, request in enumerate(requests)
        ]
        draws = [_uniform(request, self.sampling.max_tokens) for request in requests]
        rows = [row for of_prompt in candidates for row in of_prompt]
        uniform = torch.cat(draws).to(self.device)
        batches = -(-len(rows) // self.max_batch)
        size = -(-len(rows) // batches)
        for start in range(0, len(rows), size):
            # The prompts' cache is small: it is copied before the expansion, not after.
            cache = copy.deepcopy(prefilled)
            cache.layers = [_RoomyLayer.around(x) if type(x) is DynamicLayer else x for x in cache.layers]
            self._decode(rows[start : start + size], uniform[start : start + size], cache, logits, mask, look)
        return candidates

    def _prefill(self, prompts: list[list[int]]) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """The prompts' cache, logits of the next token (prompts, vocabulary), attention mask (prompts, tokens)."""
        # What the first and the last in order share, all between them share too.
        first, last = min(prompts), max(prompts)
        shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        shared = min(shared, min(map(len, prompts)) - 1)
        cache = self._beginning(prompts[0][:shared]) if len(prompts) > 1 and shared >= _SHARED else None
        if cache is None:
            shared = 0
        else:
            cache.batch_repeat_interleave(len(prompts))
        rest = [p[shared:] for p in prompts]
        self.prompt_tokens["computed"] += sum(map(len, rest))
        longest = max(map(len, rest))
        ids = torch.tensor([[0] * (longest - len(r)) + r for r in rest], device=self.device)
        mask = torch.tensor([[1] * shared + [0] * (longest - len(r)) + [1] * len(r) for r in rest], device=self.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
        out = self.model(
            ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return out.past_key_values, out.logits[:, -1], mask

    def _beginning(self, ids: list[int]) -> Any:
        """A cache of one row that holds `ids`, or None where a layer keeps a window: padding would count in it."""
        if self._windowed:
            return None
        if self._prefix is None or self._prefix[0] != ids:
            self.prompt_tokens["computed"] += len(ids)
            out = self.model(torch.tensor([ids], device=self.device), use_cache=True, logits_to_keep=1)
            self._prefix = ids, out.past_key_values
            self._windowed = any(type(layer) is not DynamicLayer for layer in out.past_key_values.layers)
        return None if self._windowed else copy.deepcopy(self._prefix[1])

    def _decode(
        self,
        rows: list[_Row],
        uniform: torch.Tensor,
        cache: Any,
        logits: torch.Tensor,
        mask: torch.Tensor,
        look: Callable[[list[_Row]], None],
    ) -> None:
        """Continue `rows` to their ends, from the prompts' `cache`, `logits` (prompts, vocabulary) and `mask`."""
        index = torch.tensor([row.prompt for row in rows], device=self.device)
        cache.reorder_cache(index)
        logits, mask = logits[index], mask[index]
        positions = mask.sum(1, keepdim=True)
        for step in range(self.sampling.max_tokens):
            tokens, logprobs = self._pick(logits.float(), rows, uniform[:, step])
            for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
                self._add(row, token, logprob)
            look(rows)
            live = [i for i, row in enumerate(rows) if row.finish is None]
            if not live:
                return
            # Dropping rows copies the cache, so it waits until it is worth it.
            if len(live) <= len(rows) * 7 / 8:
                rows = [rows[i] for i in live]
                index = torch.tensor(live, device=self.device)
                cache.reorder_cache(index)
                tokens, uniform, mask, positions = tokens[index], uniform[index], mask[index], positions[index]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            out = self.model(
                tokens[:, None], attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            logits, positions = out.logits[:, -1], positions + 1

    def _pick(self, logits: torch.Tensor, rows: list[_Row], uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Next token and its log-probability (nats) for each row, from float32 logits (rows, vocabulary)."""
        greedy = [i for i, row in enumerate(rows) if row.greedy]
        if len(greedy) == len(rows):
            tokens = logits.argmax(-1)
        else:
            tokens = draw(logits, uniform, self.sampling)
            tokens[greedy] = logits[greedy].argmax(-1)
        chosen = logits.gather(1, tokens[:, None])[:, 0]
        # logsumexp in place: a second tensor of this size is slow to allocate.
        highest = logits.amax(-1, keepdim=True)
        return tokens, chosen - logits.sub_(highest).exp_().sum(-1).log() - highest[:, 0]

    def _add(self, row: _Row, token: int, logprob: float) -> None:
        if row.finish is not None:
            return
        row.logprob += logprob
        row.tokens.append(token)
        if token in self.ends:
            row.finish = "stop"
            return
        if self.sampling.stop:
            text = continuation(self.tokenizer, row.prompt_ids, row.tokens)
            stops = [at for at in map(text.find, self.sampling.stop) if at >= 0]
            if stops:
                row.text, row.finish = text[: min(stops)], "stop"
                return
        if len(row.tokens) == self.sampling.max_tokens:
            row.finish = "length"

    def _finished(self, prompt: str, row: _Row) -> Generated:
        assert row.finish is not None
        if row.text is None:
            # An end token need not be a special one, and is no part of the text.
            said = row.tokens[:-1] if row.finish == "stop" else row.tokens
            raw, stop_at = continuation(self.tokenizer, row.prompt_ids, said).rstrip("\ufffd"), None
        else:
            raw, stop_at = row.text, tokens_of(self.tokenizer, row.prompt_ids, row.tokens, row.text)
        answer = self._reasoning.answer(prompt, raw, row.tokens[:stop_at])
        return Generated(raw, answer, row.finish, tuple(row.tokens), row.logprob, stop_at)


def _uniform(request: Request, max_tokens: int) -> torch.Tensor:
    """One number in [0, 1) for each candidate and step: (num_samples, max_tokens), float64.

    Drawn beforehand, so that no draw depends on other requests, on batches, or on when other candidates end.
    """
    generator = torch.Generator().manual_seed(request.seed % 2**63)
    return torch.rand(request.num_samples, max_tokens, dtype=torch.float64, generator=generator)


def draw(logits: torch.Tensor, uniform: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """A token for each row of `logits` (rows, vocabulary) by inverting the distribution's sum at `uniform` (rows,)."""
    ids = None
    if 0 < sampling.top_k < logits.shape[1]:
        logits, ids = logits.topk(sampling.top_k)
    elif sampling.top_p < 1:
        logits, ids = logits.sort(descending=True)
    total = (logits / sampling.temperature).softmax(-1).double().cumsum(-1)
    if sampling.top_p < 1:
        # Keep tokens until their sum reaches top_p; at least one.
        kept = (total < sampling.top_p).sum(-1, keepdim=True).clamp(max=logits.shape[1] - 1)
        total = total.clamp(max=total.gather(1, kept))
    chosen = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True).clamp(max=logits.shape[1] - 1)
    return (chosen if ids is None else ids.gather(1, chosen))[:, 0]
