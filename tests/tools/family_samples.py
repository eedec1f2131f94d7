"""Candidates of every family, drawn as the sampling stage draws them; as a program with vLLM, in a process of its own."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer

from aqe.artifact import write_parquet
from aqe.config.sample import EngineConfig, PromptConfig
from aqe.prompts import render
from aqe.sample.engine import Sampling
from aqe.sample.engine_vllm import vllm_env
from aqe.sample.load import EngineSource
from aqe.sample.stage import SampleWorker
from tests.tools.families import FAMILIES, FAST, make_family

QUERIES = (
    "who built the castle on the hill",
    "what is a café",
    "violins, engines and planets: what do they have in common, and why are they so far away from us",
    "12 m",
)
#: Texts that a model draws now and then; the first can begin inside a token.
STOP = ("st", "v")
PLAIN = PromptConfig(name="plain", template="{query} ? To answer this question, we need to know", stop=STOP)
DRAWN = Sampling(24, temperature=1.0, top_k=50, include_greedy=True, stop=STOP)
NUM_SAMPLES = 8
CONFIG = EngineConfig(name="transformers", dtype="float32", max_model_len=200, max_batch=16, kv_cache_gib=0.25)


def prompts_of(name: str) -> dict[str, PromptConfig]:
    """A plain prompt, and a chat prompt where the family has a template."""
    system = "Answer with a few words." if FAMILIES[name].system else None
    chat = PromptConfig(name="chat", chat=True, system=system, template="{query}", stop=STOP)
    return {"plain": PLAIN} | ({} if FAMILIES[name].template is None else {"chat": chat})


def plan(name: str, root: Path) -> list[dict[str, Any]]:
    """Rows of records.PLAN: every prompt of the family for every query; the qid names both."""
    tokenizer = AutoTokenizer.from_pretrained(make_family(name, root))
    texts = {
        f"{kind}-{i}": render(p, q, tokenizer) for kind, p in prompts_of(name).items() for i, q in enumerate(QUERIES)
    }
    return [
        {"unit_id": "0", "qid": qid, "prompt": text, "num_samples": NUM_SAMPLES, "seed": seed}
        for seed, (qid, text) in enumerate(texts.items())
    ]


def sample(engine: Literal["vllm", "transformers"], name: str, root: Path, out: Path) -> None:
    """Sample a family as the stage does: `out`/NAME.parquet (records.SAMPLES)."""
    source = EngineSource(engine, str(make_family(name, root)), CONFIG)
    worker = SampleWorker(source.open(), DRAWN, "sample")
    fed: list[list[int]] = []
    if engine == "vllm":
        _listen(worker, fed)
    result = worker(plan(name, root))
    assert not result.dead, result.dead
    write_parquet(result.data, out / f"{name}.parquet")
    (out / f"{name}.json").write_text(json.dumps(fed))


def _listen(worker: SampleWorker, fed: list[list[int]]) -> None:
    """Note what vLLM says that it fed its model: the prompt's token ids of every request."""
    llm: Any = worker._engine._llm  # type: ignore[attr-defined]
    generate = llm.generate

    def noted(*args: Any, **kwargs: Any) -> Any:
        outputs = generate(*args, **kwargs)
        fed.extend(list(output.prompt_token_ids) for output in outputs)
        return outputs

    llm.generate = noted


def main(root: Path, out: Path, names: list[str]) -> None:
    """Sample families with vLLM, one after the other; what it refuses is in NAME.error."""
    from vllm.distributed import cleanup_dist_env_and_memory

    for name in names:
        try:
            sample("vllm", name, root, out)
        except Exception as error:
            (out / f"{name}.error").write_text(f"{type(error).__name__}: {error}")
        cleanup_dist_env_and_memory()


@functools.cache
def _run_vllm(names: tuple[str, ...], root: Path) -> Path:
    out = root / "-".join(("vllm", *names))
    out.mkdir(parents=True)
    # Nothing is compiled: that takes longer than all the sampling.
    env = vllm_env(CONFIG, use_gpu=False) | {"PYTHONPATH": "platform:.", "TORCH_COMPILE_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(root), str(out), *names],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def vllm_samples(name: str, root: Path) -> Path:
    """Directory with the candidates that vLLM draws, NAME.parquet, and the prompts' token ids that it says it fed its
    model, NAME.json; or NAME.error. All families of a suite are sampled by one process, at the first call."""
    names = FAST if name in FAST else tuple(other for other in FAMILIES if other not in FAST)
    return _run_vllm(names, root)


@functools.cache
def transformers_samples(name: str, root: Path) -> Path:
    """Directory with the candidates that the transformers engine draws, NAME.parquet."""
    out = root / "transformers"
    out.mkdir(parents=True, exist_ok=True)
    sample("transformers", name, root, out)
    return out


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
