"""vLLM's asynchronous engine in a replica: continuous batching. The model works in a process of its own."""

import os
import uuid
from collections.abc import AsyncGenerator

from aqe.config.sample import EngineConfig
from aqe.expand.recipe import Recipe
from aqe.prompts import token_ids
from aqe.sample.engine_vllm import stop_token_ids, vllm_env, vllm_options
from serve.engine import Decoding, EngineStopped, Piece, Reason, check_length


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
        # vLLM's own metrics with Ray's, as `ray_vllm_...`.
        loggers = None if options["disable_log_stats"] else [RayPrometheusStatLogger]
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**options), stat_loggers=loggers)
        self._tokenizer = recipe.tokenizer
        self._ends = stop_token_ids(self._llm.model_config, recipe.tokenizer)
        self.max_model_len: int = self._llm.model_config.max_model_len

    async def stream(self, prompt: str, decoding: Decoding, whole: bool) -> AsyncGenerator[Piece]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        ids = token_ids(self._tokenizer, prompt)
        check_length(prompt, ids, decoding, self.max_model_len)
        params = SamplingParams(
            max_tokens=decoding.max_tokens,
            temperature=decoding.temperature,
            top_k=decoding.top_k,
            top_p=decoding.top_p,
            stop=list(decoding.stop),
            stop_token_ids=self._ends,
            seed=decoding.seed,
            output_kind=RequestOutputKind.FINAL_ONLY if whole else RequestOutputKind.DELTA,
        )
        try:
            async for output in self._llm.generate({"prompt_token_ids": ids}, params, uuid.uuid4().hex):
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
