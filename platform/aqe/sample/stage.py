"""The stage that samples: plan -> candidates, on a pool of engine actors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from aqe.artifact import write_parquet
from aqe.config.sample import EngineConfig
from aqe.nodes import Nodes
from aqe.observe import metrics
from aqe.observe.progress import Say
from aqe.records import SAMPLES, table
from aqe.sample.clean import clean
from aqe.sample.engine import Generated, Request, Sampling, make_engine
from aqe.sample.engine_vllm import vllm_env
from aqe.sample.plan import units
from aqe.units import Pool, Result, Row, run_units


class SampleWorker:
    """Generates a unit's candidates with the engine that it loaded once."""

    def __init__(
        self,
        engine: Literal["vllm", "transformers"],
        model_path: str,
        config: EngineConfig,
        sampling: Sampling,
        stage: str,
    ) -> None:
        self._engine = make_engine(engine, model_path, config, sampling)
        self._stage = stage

    def __call__(self, rows: Sequence[Row]) -> Result:
        answers = self._engine.generate([Request(r["prompt"], r["num_samples"], r["seed"]) for r in rows])
        made: list[dict[str, Any]] = []
        dead: list[tuple[Row, str]] = []
        for row, answer in zip(rows, answers, strict=True):
            if isinstance(answer, str):
                dead.append((row, answer))
            else:
                made += _records(row, answer)
        tokens = sum(r["num_tokens"] for r in made)
        metrics.count(metrics.GENERATED_TOKENS, tokens, self._stage)
        metrics.count(metrics.CANDIDATES, len(made), self._stage)
        counts = {
            "candidates": len(made),
            "tokens": tokens,
            "truncated": sum(r["finish_reason"] == "length" for r in made),
            "empty": sum(not r["expansion"] for r in made),
            "duplicate": sum(r["duplicate"] for r in made),
        }
        return Result(table(made, SAMPLES), dead, counts)


def _records(row: Row, candidates: Sequence[Generated]) -> list[dict[str, Any]]:
    """Rows of records.SAMPLES. A candidate is a duplicate when one before it says the same."""
    seen: set[str] = set()
    made = []
    for i, candidate in enumerate(candidates):
        expansion = clean(candidate.raw)
        made.append(
            {
                "unit_id": row["unit_id"],
                "qid": row["qid"],
                "sample_idx": i,
                "raw": candidate.raw,
                "expansion": expansion,
                "finish_reason": candidate.finish_reason,
                "num_tokens": candidate.num_tokens,
                "logprob": candidate.logprob,
                "duplicate": expansion in seen,
            }
        )
        seen.add(expansion)
    return made


def sample_expansions(
    out: Path,
    plan: pa.Table,
    *,
    model_path: Path,
    engine: Literal["vllm", "transformers"],
    config: EngineConfig,
    sampling: Sampling,
    pool: Pool,
    max_dead_share: float,
    say: Say,
    stage: str = "sample",
) -> dict[str, Any]:
    """Generate the plan's candidates into `out`/data (records.SAMPLES) and the plan into `out`/plan.parquet.

    Needs a connection to Ray. Returns counts (candidates, tokens, truncated, empty, duplicate, dead) and rates.
    """
    write_parquet(plan, out / "plan.parquet")
    stats = run_units(
        stage,
        out,
        units(plan),
        schema=SAMPLES,
        make=SampleWorker,
        args={
            "engine": engine,
            "model_path": str(model_path),
            "config": config,
            "sampling": sampling,
            "stage": stage,
        },
        pool=pool,
        noun="queries",
        max_dead_share=max_dead_share,
        say=say,
    )
    return {"engine": engine, **stats}


def engine_pool(config: EngineConfig, nodes: Nodes) -> Pool:
    """One actor a GPU, or one a CPU core where there is no GPU."""
    env = vllm_env(config, use_gpu=nodes.gpus > 0)
    if nodes.gpus:
        return Pool(config.workers or nodes.gpus, num_cpus=1, num_gpus=1, env=env, labels=nodes.labels)
    # Ray leaves GPUs visible to actors that take none: this pool's answers are those of a CPU.
    env["CUDA_VISIBLE_DEVICES"] = ""
    # A little less than a core each, so that Ray Data's own tasks never wait for an actor to end.
    return Pool(config.workers or sum(nodes.cpus), num_cpus=0.9, env=env, labels=nodes.labels)
