"""The vLLM engine against the transformers engine, on the CPU build, with a real model."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aqe.base_model import resolve_model
from aqe.config.data import ModelConfig
from aqe.config.sample import EngineConfig
from aqe.sample.engine import Request, Sampling
from aqe.sample.engine_transformers import TransformersEngine
from aqe.sample.engine_vllm import vllm_env

PROMPTS = [
    "The capital of France is",
    "what is gold ? To answer this question, we need to know",
    "<|im_start|>user\nwho wrote the opera carmen<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time",
    # The end-of-text token comes first.
    "Question: who wrote the opera carmen?\nAnswer:",
]
SAMPLING = {"max_tokens": 16, "temperature": 1.0, "top_k": 50, "include_greedy": True, "stop": [","]}
CONFIG = EngineConfig(dtype="float32", max_model_len=128)
# vLLM reads its environment when it is imported and keeps a model for the life of the process.
SCRIPT = """
import dataclasses, json, sys
from aqe.config.sample import EngineConfig
from aqe.sample.engine import Request, Sampling
from aqe.sample.engine_vllm import VllmEngine
given = json.loads(sys.argv[1])
engine = VllmEngine(given["path"], EngineConfig(**given["config"]), Sampling(**given["sampling"]))
requests = [Request(prompt, 3, seed) for seed, prompt in enumerate(given["prompts"])]
batches = {"a": requests[:3], "b/1": requests[3:4], "none": [], "c": requests[4:]}
closed = [answer for batch in batches.values() for answer in engine.generate(batch)]
one = dict(engine.stream(iter(batches.items()), 1))
# Somebody takes the first answers and leaves: nothing of the rest may be left in the engine.
left = engine.stream(iter(batches.items()), 3)
next(left)
left.close()
assert not engine._llm.llm_engine.has_unfinished_requests()
several = dict(engine.stream(iter(batches.items()), 3))
runs = [engine.generate(requests), engine.generate(requests), closed]
runs += [[answer for name in batches for answer in of[name]] for of in (one, several)]
print("\\n" + json.dumps([[a if isinstance(a, str) else [dataclasses.asdict(g) for g in a] for a in r] for r in runs]))
"""


def run_vllm(path: Path) -> list[list[Any]]:
    given = {"path": str(path), "config": CONFIG.model_dump(), "sampling": SAMPLING, "prompts": [*PROMPTS, "a " * 200]}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(given)],
        env=os.environ | {"PYTHONPATH": "platform"} | vllm_env(CONFIG, use_gpu=False),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return runs


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
def test_both_engines_mean_the_same() -> None:
    path = resolve_model(ModelConfig()).path
    first, again, closed, one, several = run_vllm(path)
    assert first == again
    # One batch at a time is a closed batch. Several at once: the same answers, but for the last bits.
    assert closed == one
    for alone, beside in zip(closed, several, strict=True):
        if isinstance(alone, str):
            assert beside == alone
        else:
            assert [g["raw"] for g in beside] == [g["raw"] for g in alone]
            for g, h in zip(beside, alone, strict=True):
                assert g["logprob"] == pytest.approx(h["logprob"], abs=1e-3)
    engine = TransformersEngine(str(path), CONFIG, Sampling(**SAMPLING | {"stop": (",",)}))  # type: ignore[arg-type]
    *answers, refused = engine.generate([Request(prompt, 3, i) for i, prompt in enumerate([*PROMPTS, "a " * 200])])
    assert isinstance(refused, str) and first[-1] == refused
    reasons = set()
    for theirs, ours in zip(first, answers, strict=False):
        assert not isinstance(ours, str)
        assert len(theirs) == len(ours) == 3
        # The drawn ones cannot agree: each engine has its own random numbers.
        greedy, own = theirs[0], ours[0]
        assert greedy["raw"] == own.raw
        assert greedy["finish_reason"] == own.finish_reason
        assert greedy["answer"] == own.answer
        assert (greedy["token_ids"], greedy["stop_at"]) == ([*own.token_ids], own.stop_at)
        assert greedy["logprob"] == pytest.approx(own.logprob, abs=1e-3)
        reasons.add(own.finish_reason)
    assert reasons == {"stop", "length"}
    assert (first[4][0]["raw"], len(first[4][0]["token_ids"])) == ("", 1), "the end-of-text token alone"
