"""The transformers engine and a training step on a GPU, at real models' sizes: random weights cost the same.

usage: python benchmarks/gpu.py [--sizes 135m 1.7b 8b] [--tokenizer DIR] [--out docs/results/bench_gpu.json]

Generation: 50 candidates of 100 tokens for each of 13 prompts, no candidate ends early (random weights do not know
how), in bfloat16; beside it Hugging Face's `generate` on the same model object, and first a check that greedy tokens in
float32 are the same on GPU, on CPU and from `generate`. Training: forward and backward pass of 16 sequences of 160
tokens, the recipe's batch, without the optimizer; its share of the peak is that of a matrix product measured here.
Needs torch, transformers, and one GPU with 40 GB for the largest. About 4 minutes.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "platform"))
SAMPLES, TOKENS = 50, 100
WORDS = (
    "stream",
    "water",
    "river",
    "sea",
    "tool",
    "hammer",
    "nail",
    "fear",
    "space",
    "speed",
    "care",
    "shoe",
    "whisper",
)
QUERIES = len(WORDS)
BATCH, LENGTH = 16, 160
#: hidden size, layers, heads, key-value heads, intermediate size, vocabulary, tied embeddings: the model cards'.
SIZES = {
    "135m": (576, 30, 9, 3, 1536, 49_152, True),
    "1.7b": (2048, 24, 32, 32, 8192, 49_152, True),
    "8b": (4096, 32, 32, 8, 14_336, 128_256, False),
}


def make_model(size: str, tokenizer: Path, out: Path) -> int:
    """A Llama of this size with random weights, saved beside the tokenizer; returns the number of parameters."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    hidden, layers, heads, kv_heads, intermediate, vocabulary, tied = SIZES[size]
    names = AutoTokenizer.from_pretrained(tokenizer)
    names.save_pretrained(out)
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
        eos_token_id=names.eos_token_id,
        pad_token_id=names.pad_token_id,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(out)
    return sum(p.numel() for p in model.parameters())


def timed(work: Callable[[], Any]) -> float:
    """Wall seconds until the GPU is done."""
    import torch

    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def agreement(path: Path, prompts: list[str]) -> dict[str, float]:
    """Share of greedy continuations of 32 tokens, in float32, that are the same token for token."""
    import torch

    from aqe.config.sample import EngineConfig
    from aqe.sample.engine import Request, Sampling
    from aqe.sample.engine_transformers import TransformersEngine

    engine = TransformersEngine(str(path), EngineConfig(dtype="float32"), Sampling(32, temperature=0.0))
    requests = [Request(prompt, 1, 0) for prompt in prompts]
    here = [answer[0].raw for answer in engine.generate(requests)]
    inputs = engine.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(engine.device)
    made = engine.model.generate(**inputs, do_sample=False, max_new_tokens=32, pad_token_id=0)
    theirs = [engine._text(_row(ids, inputs, i)) for i, ids in enumerate(made.tolist())]
    engine.device, engine.model, engine._prefix = torch.device("cpu"), engine.model.to("cpu"), None
    cpu = [answer[0].raw for answer in engine.generate(requests)]
    return {
        "same_as_cpu": sum(a == b for a, b in zip(here, cpu, strict=True)) / len(here),
        "same_as_generate": sum(a == b.rstrip("\ufffd") for a, b in zip(here, theirs, strict=True)) / len(here),
    }


def _row(ids: list[int], inputs: Any, i: int) -> Any:
    """What `generate` wrote, as the engine's own row: detokenized alike."""
    from aqe.sample.engine_transformers import _TAIL, _Row

    prompt = inputs["input_ids"].shape[1]
    return _Row(i, ids[prompt - _TAIL : prompt], True, ids[prompt:])


def generation(path: Path, prompts: list[str]) -> dict[str, float]:
    """Tokens a second: the engine in batches of its default size, with all in one batch, and `generate`, which has."""
    import torch

    from aqe.config.sample import EngineConfig
    from aqe.sample.engine import Request, Sampling
    from aqe.sample.engine_transformers import TransformersEngine

    engine = TransformersEngine(str(path), EngineConfig(), Sampling(TOKENS, temperature=1.0))
    engine.ends = set()
    requests = [Request(prompt, SAMPLES, i) for i, prompt in enumerate(prompts)]
    inputs = engine.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(engine.device)

    def ours(batch: int) -> None:
        engine.max_batch = batch
        engine.generate(requests)

    def theirs() -> None:
        engine.model.generate(
            **inputs, do_sample=True, top_k=0, num_return_sequences=SAMPLES, pad_token_id=0,
            min_new_tokens=TOKENS, max_new_tokens=TOKENS,
        )  # fmt: skip

    arms = {
        f"engine_batch_{engine.max_batch}": lambda batch=engine.max_batch: ours(batch),
        "engine_batch_1024": lambda: ours(1024),
        "generate": theirs,
    }
    found = {}
    engine.generate(requests[:1])
    for name, arm in arms.items():
        torch.cuda.reset_peak_memory_stats()
        found[name] = len(prompts) * SAMPLES * TOKENS / min(timed(arm) for _ in range(2))
        found[f"{name}_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def training(path: Path, parameters: int, peak: float) -> dict[str, float]:
    """Tokens a second of a forward and backward pass."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).to("cuda").train()
    ids = torch.randint(0, 49_000, (BATCH, LENGTH), device="cuda")

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=False)

    step()
    each = timed(lambda: [step() for _ in range(5)]) / 5
    return {"tokens_per_second": BATCH * LENGTH / each, "share_of_peak": 6 * parameters * BATCH * LENGTH / each / peak}


def peak_flops() -> float:
    """Operations a second of a large matrix product in bfloat16."""
    import torch

    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return 20 * 2 * n**3 / timed(lambda: [a @ b for _ in range(20)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--tokenizer", type=Path, help="default: that of the bundled model")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "bench_gpu.json")
    args = parser.parse_args()
    import torch
    import transformers

    if args.tokenizer is None:
        from aqe.base_model import resolve_model
        from aqe.config.data import ModelConfig

        args.tokenizer = Path(resolve_model(ModelConfig()).path)
    prompts = [f"Describe in one line what stands near {' and '.join(WORDS[i:])}:" for i in range(QUERIES)]
    peak = peak_flops()
    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "matrix_product_tflops": peak / 1e12,
        "models": {},
    }
    print(f"{result['gpu']}: {peak / 1e12:.0f} TFLOP/s in a matrix product", flush=True)
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory)
            parameters = make_model(size, args.tokenizer, path)
            torch.cuda.empty_cache()
            found: dict[str, Any] = {"parameters": parameters}
            if size == "135m":
                found |= agreement(path, prompts)
            found["generation"] = generation(path, prompts)
            torch.cuda.empty_cache()
            found["training"] = training(path, parameters, peak)
            torch.cuda.empty_cache()
        result["models"][size] = found
        print(size, json.dumps(found), flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
