"""vLLM's asynchronous engine in a replica: continuous batching. The model works in a process of its own."""

import os
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from aqe.config.sample import EngineConfig
from aqe.expand.recipe import Recipe
from aqe.sample.engine_vllm import stop_token_ids, vllm_env, vllm_options
from serve.engine import EngineStopped, Job, Piece, Reason
from serve.fair import spare_places
from serve.pulse import Pulse


def pulse_logger(pulse: Pulse) -> Any:
    """What vLLM tells of each step of its engine; tokens of answers that are wanted whole come only at their end."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class PulseLogger(StatLoggerBase):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
            # There are none of a step that made nothing.
            if iteration_stats is not None:
                pulse.beat()

        def log_engine_initialized(self) -> None:
            pass

    return PulseLogger


class VllmServing:
    """Implements `serve.engine.ServingEngine`."""

    name = "vllm"

    def __init__(self, recipe: Recipe, config: EngineConfig) -> None:
        import torch

        env = vllm_env(config, torch.cuda.is_available())
        # The process that computes is another one than this, whatever vllm_env says of batches: it can be killed and is
        # noticed, and HTTP goes on while it works. A fresh one, because a replica has threads, which do not survive a
        # fork. On a CPU vLLM would otherwise add a worker for it, and it would spin on a core of its own to wait.
        env |= {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
        os.environ.update({key: value for key, value in env.items() if key not in os.environ})
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

        options = vllm_options(str(recipe.path), config)
        # A cached prefix changes the last bits of the arithmetic and, once in a while, a token: an expansion must not
        # depend on what was asked before. Prompts are short, so little is lost.
        options |= {"enable_prefix_caching": False, "distributed_executor_backend": "uni"}
        # Callers share the cache of keys and values too: who has the most sequences gives way (see serve.fair).
        self.places = int(options["max_num_seqs"])
        options |= {"max_num_seqs": self.places + spare_places(self.places), "scheduling_policy": "priority"}
        self.pulse = Pulse()
        loggers: list[Any] = [pulse_logger(self.pulse)]
        if not options["disable_log_stats"]:
            # vLLM's own metrics with Ray's, as `ray_vllm_...`.
            loggers.append(RayPrometheusStatLogger)
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**options), stat_loggers=loggers)
        self._ends = stop_token_ids(self._llm.model_config, recipe.tokenizer)
        self.max_model_len: int = self._llm.model_config.max_model_len

    async def stream(self, job: Job, number: int) -> AsyncGenerator[Piece]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        decoding = job.decoding
        params = SamplingParams(
            max_tokens=decoding.max_tokens,
            temperature=decoding.temperature,
            top_k=decoding.top_k,
            top_p=decoding.top_p,
            stop=list(decoding.stop),
            stop_token_ids=self._ends,
            seed=decoding.seed,
            output_kind=RequestOutputKind.FINAL_ONLY if job.whole else RequestOutputKind.DELTA,
        )
        try:
            prompt = {"prompt_token_ids": list(job.ids)}
            async for output in self._llm.generate(prompt, params, uuid.uuid4().hex, priority=number):
                new = output.outputs[0]
                reason: Reason | None = None
                if new.finish_reason is not None:
                    reason = "length" if new.finish_reason == "length" else "stop"
                yield Piece(new.text, tuple(new.token_ids), reason)
        except EngineDeadError:
            raise EngineStopped("the engine's process has ended") from None

    async def check(self) -> None:
        if self._llm.errored:
            raise EngineStopped("the engine's process has ended")

    def close(self) -> None:
        self._llm.shutdown()
