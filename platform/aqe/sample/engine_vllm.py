"""The vLLM engine, in this process: on GPUs, and on CPUs through vLLM's CPU build.

The n samples of a request share its prompt's key-value cache. `ray.data.llm` is not used: it returns the first sample
only and hides why a generation ended.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import ray

from aqe.config.sample import EngineConfig
from aqe.endings import end_ids
from aqe.malloc import KEEP_MEMORY
from aqe.prompts import token_ids
from aqe.reasoning import Reasoning
from aqe.sample.engine import Generated, Request, Sampling, precision, refusal, tokens_of


def vllm_env(config: EngineConfig, use_gpu: bool) -> dict[str, str]:
    """Environment that must be set before the process imports vllm."""
    env = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    # In-process: an actor is one process that Ray can account for and kill, and closed batches stay deterministic.
    env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not use_gpu:
        # One thread an actor; vLLM's own binding would pin all actors to the same core.
        env |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        env |= {"VLLM_CPU_KVCACHE_SPACE": str(max(1, round(config.kv_cache_gib)))}
        env |= KEEP_MEMORY
    return env


def vllm_options(model_path: str, config: EngineConfig) -> dict[str, Any]:
    """Arguments of vLLM's engines, for batches and for serving."""
    from transformers import AutoConfig
    from vllm.platforms import current_platform

    # vLLM refuses more than the model was made for.
    text_config = AutoConfig.from_pretrained(model_path).get_text_config()
    longest = getattr(text_config, "max_position_embeddings", None)
    on_cpu = current_platform.is_cpu()
    options: dict[str, Any] = {
        "model": model_path,
        "dtype": precision(config, model_path, use_gpu=not on_cpu),
        "max_model_len": config.max_model_len if longest is None else min(config.max_model_len, longest),
        "max_num_seqs": config.max_batch,
        # torch.compile pays on a CPU only after some 100,000 tokens.
        "enforce_eager": on_cpu,
        "enable_prefix_caching": True,
        "disable_log_stats": not ray.is_initialized(),
        "seed": 0,
    }
    if on_cpu:
        # A prompt split over steps rewinds its generator's offset, which CPU generators do not have (RuntimeError).
        options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(4096, config.max_model_len)}
        # Only whole blocks of a prompt are shared between its candidates; the CPU's default of 128 tokens is longer
        # than most prompts.
        options["block_size"] = 32
    return options | config.extra


def batch_stat_logger(vllm_config: Any) -> Any:
    """What exports vLLM's own metrics with Ray's, as `ray_vllm_...`."""
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    class BatchStatLogger(RayPrometheusStatLogger):  # type: ignore[misc]
        def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
            if iteration_stats:
                # One call a token, a millisecond a step with 256 sequences; nobody waits for a batch's next token.
                iteration_stats.inter_token_latencies_iter.clear()
            super().record(scheduler_stats, iteration_stats, *args, **kwargs)

    return BatchStatLogger(vllm_config)


class _Part(NamedTuple):
    """What the engine is asked for: greedy or drawn candidates of one request of a batch."""

    request: int
    ids: list[int]
    params: Any


@dataclass(frozen=True)
class _Batch:
    """Requests, what the engine is asked for them, and why some are refused."""

    requests: Sequence[Request]
    parts: list[_Part]
    refused: dict[int, str]


class VllmEngine:
    """Implements `aqe.sample.engine.Engine`."""

    name = "vllm"

    def __init__(self, model_path: str, config: EngineConfig, sampling: Sampling) -> None:
        from vllm import LLM

        self.prompt_tokens: Counter[str] = Counter()
        self._llm = LLM(**vllm_options(model_path, config))
        if logger := self._llm.llm_engine.logger_manager:
            # In place of vLLM's own exporter, which nobody asks. LLM has no argument for it.
            logger.stat_loggers = [batch_stat_logger(self._llm.llm_engine.vllm_config)]
        self._sampling = sampling
        self._max_len: int = self._llm.model_config.max_model_len
        self._tokenizer = self._llm.get_tokenizer()
        self._reasoning = Reasoning(self._tokenizer)
        self._ends = stop_token_ids(self._llm.model_config, self._tokenizer)

    def with_sampling(self, sampling: Sampling) -> "VllmEngine":
        """The same model, decoded otherwise."""
        other = copy.copy(self)
        other._sampling = sampling
        return other

    def generate(self, requests: Sequence[Request]) -> list[list[Generated] | str]:
        # A cached prefix changes the shapes of the matrix products and so the last bits: each batch starts without.
        self._llm.reset_prefix_cache()
        batch = self._batch(requests)
        prompts, params = [{"prompt_token_ids": one.ids} for one in batch.parts], [one.params for one in batch.parts]
        outputs = self._llm.generate(prompts, params, use_tqdm=False) if prompts else []
        return self._answers(batch, dict(enumerate(outputs)))

    def stream(
        self, batches: Iterator[tuple[str, Sequence[Request]]], in_flight: int
    ) -> Iterator[tuple[str, list[list[Generated] | str]]]:
        """Answers of each batch by its name, as soon as it has all of them; `in_flight` batches are open at once.

        The places that candidates of one batch leave are taken by the next one's, so that the engine never waits for
        the longest candidate of a batch but the last. With several in flight a candidate's last bits depend on what is
        decoded beside it; with one the answers are those of `generate`.
        """
        engine = self._llm.llm_engine
        opened: dict[str, tuple[_Batch, dict[int, Any]]] = {}
        try:
            while True:
                while len(opened) < in_flight and (following := next(batches, None)) is not None:
                    if not opened:
                        self._llm.reset_prefix_cache()
                    name, requests = following
                    batch = self._batch(requests)
                    opened[name] = batch, {}
                    for number, part in enumerate(batch.parts):
                        engine.add_request(f"{name}/{number}", {"prompt_token_ids": part.ids}, part.params)
                if not opened:
                    return
                for output in engine.step() if engine.has_unfinished_requests() else ():
                    if output.finished:
                        name, _, number = output.request_id.rpartition("/")
                        opened[name][1][int(number)] = output
                for name in [n for n, (batch, outputs) in opened.items() if len(outputs) == len(batch.parts)]:
                    yield name, self._answers(*opened.pop(name))
        finally:
            # Who took them has failed, or wants no more.
            left = [
                f"{name}/{number}"
                for name, (batch, outputs) in opened.items()
                for number in range(len(batch.parts))
                if number not in outputs
            ]
            if left:
                engine.abort_request(left)

    def _batch(self, requests: Sequence[Request]) -> "_Batch":
        batch = _Batch(requests, [], {})
        for i, request in enumerate(requests):
            ids = token_ids(self._tokenizer, request.prompt)
            if why := refusal(request.prompt, ids, self._sampling.max_tokens, self._max_len):
                batch.refused[i] = why
            else:
                batch.parts.extend(_Part(i, ids, params) for params in self._params(request))
        return batch

    def _answers(self, batch: "_Batch", outputs: Mapping[int, Any]) -> list[list[Generated] | str]:
        answers: list[list[Generated] | str] = [batch.refused.get(i, []) for i in range(len(batch.requests))]
        for number, part in enumerate(batch.parts):
            output, candidates = outputs[number], answers[part.request]
            if odd := {o.finish_reason for o in output.outputs} - {"stop", "length"}:
                answers[part.request] = f"vLLM ended a candidate with {odd.pop()!r}"
            elif isinstance(candidates, list):
                prompt, drawn = batch.requests[part.request].prompt, sorted(output.outputs, key=lambda o: o.index)
                candidates.extend(self._generated(prompt, part.ids, o) for o in drawn)
        return answers

    def _params(self, request: Request) -> list[Any]:
        """Greedy and drawn candidates need requests of their own: vLLM has one temperature a request."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        s = self._sampling
        # logprobs=0: of the chosen token only.
        shared: dict[str, Any] = {"max_tokens": s.max_tokens, "stop": list(s.stop), "logprobs": 0}
        shared |= {"stop_token_ids": self._ends, "output_kind": RequestOutputKind.FINAL_ONLY}
        greedy = request.num_samples if s.temperature == 0 else int(s.include_greedy)
        drawn = request.num_samples - greedy
        params = [SamplingParams(n=1, temperature=0.0, **shared) for _ in range(greedy)]
        if drawn:
            warm = {"temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p}
            params.append(SamplingParams(n=drawn, seed=request.seed, **warm, **shared))
        return params

    def _generated(self, prompt: str, prompt_ids: list[int], output: Any) -> Generated:
        reason: Literal["stop", "length"] = "length" if output.finish_reason == "length" else "stop"
        ids = tuple(output.token_ids)
        # A text is the reason where one ended it; a token's number, or nothing for the model's own end token.
        by_text = isinstance(output.stop_reason, str)
        stop_at = tokens_of(self._tokenizer, prompt_ids, ids, output.text) if by_text else None
        answer = self._reasoning.answer(prompt, output.text, ids[:stop_at])
        return Generated(output.text, answer, reason, ids, output.cumulative_logprob, stop_at)


def stop_token_ids(model_config: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an expansion (see aqe.endings.end_ids), as vLLM's SamplingParams take them."""
    ends = model_config.try_get_generation_config().get("eos_token_id")
    return sorted(end_ids(tokenizer, ends))
