"""vLLM in a replica: its steps are its pulse, and it takes more sequences than one caller may have."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aqe.config.sample import EngineConfig
from aqe.sample.engine_vllm import vllm_env
from tests.tools.serve import aligned

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
ENGINE = {"name": "vllm", "dtype": "float32", "max_model_len": 128, "max_batch": 8, "kv_cache_gib": 1}
#: In a process of its own: vLLM changes its environment. The main guard is for the processes that vLLM starts.
SCRIPT = """
import asyncio, json, sys
from aqe.config.sample import EngineConfig
from aqe.expand.recipe import load_recipe
from aqe.prompts import token_ids
from serve.engine import Decoding, Job
from serve.engine_vllm import VllmServing
from serve.pulse import Pulse

class Counted(Pulse):
    beats = 0
    def beat(self):
        super().beat()
        self.beats += 1

async def main(model, engine):
    recipe = load_recipe(model)
    import serve.engine_vllm as module
    module.Pulse = Counted
    serving = VllmServing(recipe, EngineConfig(**engine))

    async def made(number):
        prompt = f"sequence {number}"
        ids = tuple(token_ids(recipe.tokenizer, prompt))
        job = Job("a", prompt, ids, Decoding(60, temperature=1.0, seed=number), whole=True)
        pieces = [piece async for piece in serving.stream(job, number)]
        return len(pieces), sum(len(piece.token_ids) for piece in pieces)

    one = await made(0)
    beats = serving.pulse.beats
    several = await asyncio.gather(*(made(number) for number in range(9)))
    left = asyncio.create_task(made(0))
    await asyncio.sleep(0.2)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    await asyncio.sleep(1)
    quiet = serving.pulse.still_s
    serving.close()
    print("\\n" + json.dumps({"one": one, "beats": beats, "several": several, "places": serving.places, "quiet": quiet}))

if __name__ == "__main__":
    asyncio.run(main(*json.loads(sys.argv[1])))
"""


def test_a_whole_answer_is_many_steps(tmp_path: Path) -> None:
    # vLLM's attention on CPUs has no heads below 32.
    model = aligned(tmp_path, hidden_size=128)
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), json.dumps([str(model), ENGINE])],
        env=os.environ
        | {"PYTHONPATH": f"{root / 'platform'}:{root}"}
        | vllm_env(EngineConfig.model_validate(ENGINE), use_gpu=False),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads(done.stdout.splitlines()[-1])
    pieces, tokens = made["one"]
    # One piece, and a beat for each of its tokens: vLLM may tell of two steps at once.
    assert pieces == 1 and tokens > 1 and made["beats"] >= tokens / 2
    assert made["places"] == 8 and len(made["several"]) == 9
    # Who has left ends its work: nothing beats any more.
    assert made["quiet"] > 0.4
