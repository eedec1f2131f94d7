"""Ranking and sampling on one and on two worker nodes, each a raylet of its own that is pinned to one core.

usage: python benchmarks/scaling.py [--rounds 2] [--stages ranking small_ranking sampling dispatch]
       [--out docs/results/bench_scaling.json]

Needs `make quickstart`, `make wiki-small` and `make bench-rank`: queries, candidates, model, and indexes. `ranking` is
on 2 M passages, where a rank costs what it costs on a corpus that one would want nodes for; `small_ranking` is on the
quickstart's 89,451, where the driver's work for a rank is almost as long. The work is that of the stages: the same
workers, in the same pools, under the same driver, which runs on the head as a submitted job's does. A worker's rate is
what it made between the ends of its first and last units over the time between them, so that starting (processes,
models, compiled loops) does not count; it is given apart. Head and driver are not pinned: they take their time from the
same cores, which costs two nodes more than it would on their own machines. So Linux is asked how long each worker was
ready to run while another process had its core (schedstat), and the efficiency is given with and without that time;
waiting for the driver is in both. `dispatch` is units without any work: what one driver can hand out. Right only on an
idle machine. About 15 minutes.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from generation import cpu_name  # noqa: E402
from gold_rank import BENCH, artifact  # noqa: E402

RUN = "quickstart"
NODES = (1, 2)
#: Pool and what is counted.
STAGES = {
    "ranking": ("cpu", "ranks"),
    "small_ranking": ("cpu", "ranks"),
    "sampling": ("gpu", "tokens"),
    "dispatch": ("cpu", "units"),
}
UNITS = {"ranking": 120, "small_ranking": 200, "sampling": 10, "dispatch": 2000}
#: Queries a unit. Eight, the default, are ranked in 10 ms on a small index: what a unit costs beside them would be
#: measured.
UNIT = {"ranking": 25, "small_ranking": 100, "sampling": 8, "dispatch": 8}
#: The run whose queries and candidates are ranked.
RANKED = {"ranking": "wiki_small", "small_ranking": RUN, "dispatch": RUN}
LARGE = BENCH / "synthetic_2m" / "impacts"
#: Each worker's first unit is not measured.
FEWEST_UNITS = 4
#: Runs whose stages' own measurements are kept beside for benchmarks/cost_model.py, and which of these.
RUNS = ("quickstart", "wiki_small")
KEPT = ("cpu_hours", "passages", "postings", "bytes", "rows", "candidates", "tokens", "tokens_per_second", "steps")


class Work(NamedTuple):
    """What `run_units` is asked for."""

    make: Callable[..., Any]
    args: Mapping[str, Any]
    schema: pa.Schema
    pool: Any


class Timed:
    """A stage's worker that notes of each unit its end, its count, and how long others have had the core until then."""

    def __init__(self, make: Callable[..., Any], args: Mapping[str, Any], noun: str, log: str) -> None:
        self._noun, self._log = noun, Path(log) / str(os.getpid())
        self._work = make(**args)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        result = self._work(rows)
        others = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
        with self._log.open("a") as log:
            log.write(f"{time.time()} {result.counts[self._noun]} {others}\n")
        return result


class Nothing:
    """A worker whose units cost nothing but themselves."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        from aqe.records import RANKS
        from aqe.units import Result

        return Result(RANKS.empty_table(), [], {"units": 1})


def ranked(run: str) -> dict[str, Any]:
    """The manifest of the run's ranking."""
    manifest: dict[str, Any] = json.loads((artifact(run, "rank_train") / "manifest.json").read_text())
    return manifest


def parent(stage: str, run: str = RUN) -> Path:
    """The artifact of `stage` that was ranked, or ranked on."""
    (name,) = (name for name in ranked(run)["parents"] if name.startswith(f"{stage}-"))
    return ROOT / "runs" / run / name


def rows_to_rank(samples: pa.Table, run: str = RUN) -> list[dict[str, Any]]:
    """The run's training queries with their candidates in `samples`."""
    from aqe.artifact import read_parquet
    from aqe.rank.stage import rank_rows

    queries = read_parquet(artifact(run, "queries") / "train.parquet")
    qrels = read_parquet(parent("judge_queries", run) / "qrels.parquet")
    return rank_rows(queries, qrels, samples)


def rows_to_sample() -> list[dict[str, Any]]:
    """The plan of the run's training queries."""
    from aqe.artifact import read_parquet

    rows: list[dict[str, Any]] = read_parquet(parent("sample_train") / "plan.parquet").to_pylist()
    return rows


def rank_work(stage: str) -> Work:
    """Gold ranks as the run computed them, on its index or on the large one."""
    from aqe.config.data import IndexConfig
    from aqe.config.rank import RankConfig
    from aqe.nodes import nodes_of
    from aqe.rank.stage import RankWorker, ranker_pool, ranker_source
    from aqe.records import RANKS

    run = RANKED[stage]
    config = RankConfig(**{key: ranked(run)["config"][key] for key in ("query_weight", "distinct_words")})
    source = ranker_source(config, LARGE if stage == "ranking" else parent("build_impacts", run), IndexConfig())
    pool = ranker_pool(config, IndexConfig(), nodes_of("cpu"))
    return Work(RankWorker, {"source": source, "stage": "rank_train"}, RANKS, pool)


def sample_work() -> Work:
    """Candidates as the run drew them."""
    from aqe.base_model import resolve_model
    from aqe.config.data import ModelConfig
    from aqe.config.sample import EngineConfig
    from aqe.nodes import nodes_of
    from aqe.records import SAMPLES
    from aqe.sample.engine import Sampling
    from aqe.sample.stage import SampleWorker, engine_pool

    manifest = json.loads((parent("sample_train") / "manifest.json").read_text())
    sampling, engine = manifest["config"]["sampling"], manifest["stats"]["engine"]
    args = {
        "engine": engine,
        "model_path": str(resolve_model(ModelConfig()).path),
        "config": EngineConfig(name=engine),
        "sampling": Sampling(**{**sampling, "stop": tuple(sampling["stop"])}),
        "stage": "sample_train",
    }
    return Work(SampleWorker, args, SAMPLES, engine_pool(EngineConfig(name=engine), nodes_of("gpu")))


def drive(stage: str, units: int, out: Path) -> None:
    """The driver: work through `units` units on the cluster that RAY_ADDRESS names."""
    import ray

    from aqe.artifact import read_parquet
    from aqe.observe.progress import say
    from aqe.sample.plan import batched
    from aqe.units import run_units

    ray.init(runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "platform")}}, log_to_driver=False)
    work = sample_work() if stage == "sampling" else rank_work(stage)
    if stage == "dispatch":
        work = work._replace(make=Nothing, args={})
    if stage == "sampling":
        rows = rows_to_sample()
    else:
        run = RANKED[stage]
        rows = rows_to_rank(read_parquet(parent("sample_train", run) / "data"), run)
    # The same queries again where there are not enough.
    again = [{**rows[i % len(rows)], "round": i // len(rows)} for i in range(units * UNIT[stage])]
    noun = STAGES[stage][1]
    (out / "log").mkdir(parents=True)
    run_units(
        stage,
        out,
        batched(again, UNIT[stage]),
        schema=work.schema,
        make=Timed,
        args={"make": work.make, "args": work.args, "noun": noun, "log": str(out / "log")},
        pool=work.pool,
        noun="queries",
        max_dead_share=0.0,
        say=say,
    )


def driver_memory(run: str) -> dict[str, float]:
    """What the driver of ranking holds for each candidate: the samples' table, the rows, and the units made of them."""
    import tracemalloc

    from aqe.artifact import read_parquet
    from aqe.sample.plan import batched

    samples = parent("sample_train", run) / "data"
    rows_to_rank(read_parquet(samples), run)  # What is imported on the way does not count.
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    table = read_parquet(samples)
    rows = rows_to_rank(table, run)
    units = [json.dumps(unit.rows) for unit in batched(rows, UNIT["dispatch"])]
    held = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
    tracemalloc.stop()
    assert len(units) * UNIT["dispatch"] >= len(rows)
    tokens = sum(table["num_tokens"].to_pylist()) / table.num_rows
    return {"tokens_per_candidate": round(tokens, 2), "driver_bytes_per_candidate": round(held / table.num_rows)}


def rates(log: Path) -> tuple[list[float], list[float]]:
    """Of each worker: what it made a second after its first unit, with and without the time others had its core."""
    found, alone = [], []
    for path in log.iterdir():
        ends, counts, others = zip(*(map(float, line.split()) for line in path.read_text().splitlines()), strict=True)
        if len(ends) < FEWEST_UNITS:
            raise SystemExit(f"a worker made {len(ends)} units, too few to measure: ask for more")
        made, seconds = sum(counts[1:]), ends[-1] - ends[0]
        found.append(made / seconds)
        alone.append(made / (seconds - (others[-1] - others[0])))
    return found, alone


def measure(stage: str, nodes: int, units: int) -> dict[str, Any]:
    """One run on one cluster of `nodes` worker nodes."""
    from cluster.local.nodes import cluster

    kind, noun = STAGES[stage]
    with cluster() as made, tempfile.TemporaryDirectory(prefix="scaling") as directory:
        for node in [made.launch(kind, core=core) for core in range(nodes)]:  # type: ignore[arg-type]
            made.joined(node)
        out, started = Path(directory) / "out", time.time()
        subprocess.run(
            [sys.executable, __file__, "--drive", stage, "--units", str(units), "--directory", str(out)],
            env={**made.head.env, "RAY_ADDRESS": made.head.gcs, "TQDM_DISABLE": "1"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        found, alone = rates(out / "log")
        first = min(float(path.read_text().split(maxsplit=1)[0]) for path in (out / "log").iterdir())
    if len(found) != nodes:
        raise SystemExit(f"{stage}: {len(found)} workers on {nodes} nodes")
    return {
        "nodes": nodes,
        "units": units,
        f"{noun}_per_second": round(sum(found), 1),
        "of_each": [round(rate, 1) for rate in found],
        f"{noun}_per_second_of_its_core": round(sum(alone), 1),
        "seconds_to_first_unit": round(first - started, 1),
    }


def median(rounds: Sequence[Mapping[str, Any]], key: str, nodes: int) -> float:
    return statistics.median(r[key] for r in rounds if r["nodes"] == nodes)


def summarise(measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians of the rounds, and the efficiencies of two nodes against one.

    `efficiency_clock` is the rate of two over twice that of one, with head and driver on the same cores; `efficiency`
    is the same without the time in which a worker was ready and another process had its core, as where these have a
    machine of their own.
    """
    from aqe.artifact import versions

    stages: dict[str, Any] = {}
    for stage, rounds in measured.items():
        noun = STAGES[stage][1]
        one, two = (median(rounds, f"{noun}_per_second", n) for n in NODES)
        own_one, own_two = (median(rounds, f"{noun}_per_second_of_its_core", n) for n in NODES)
        stages[stage] = {
            "one_node": one,
            "two_nodes": two,
            "efficiency_clock": round(two / (2 * one), 3),
            "efficiency": round(own_two / (2 * own_one), 3),
            "rounds": rounds,
        }
    return {
        "benchmark": "scaling",
        "run": RUN,
        "queries_per_unit": UNIT,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2)},
        "versions": {"python": platform.python_version(), **versions("ray", "torch", "transformers", "numba")},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "stages": stages,
        "runs": {run: {**costs(run), **driver_memory(run)} for run in RUNS if (ROOT / "runs" / run).exists()},
    }


def costs(run: str) -> dict[str, Any]:
    """What the stages of a finished run say that they took."""
    found = {}
    for stage in ("build_index", "build_impacts", "sample_train", "align_rsft", "align_rsft_dpo"):
        stats = json.loads((artifact(run, stage) / "manifest.json").read_text())["stats"]
        found[stage] = {key: stats[key] for key in KEPT if key in stats}
    return found


def table(stages: Mapping[str, Any]) -> str:
    """One line a stage."""
    lines = [f"{'':14}{'1 node':>16}{'2 nodes':>16}{'by the clock':>14}{'own cores':>13}"]
    for stage, found in stages.items():
        noun = STAGES[stage][1]
        cells = "".join(f"{found[key]:.0f} {noun}/s".rjust(16) for key in ("one_node", "two_nodes"))
        lines.append(f"{stage:14}{cells}{found['efficiency_clock']:>14.2f}{found['efficiency']:>13.2f}")
    return "\n".join(lines)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often each is measured (default: 2)")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="the others are kept")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "bench_scaling.json")
    parser.add_argument("--drive", choices=list(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--units", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        drive(args.drive, args.units, args.directory)
        return
    if len(os.sched_getaffinity(0)) < max(NODES):
        parser.error(f"{max(NODES)} nodes pinned to a core each need {max(NODES)} cores")
    from aqe.artifact import write_text

    measured: dict[str, list[dict[str, Any]]] = {stage: [] for stage in args.stages}
    for i in range(args.rounds):
        for stage in args.stages:
            # Every other round in the other order: what drifts meanwhile hits both.
            for nodes in NODES if i % 2 == 0 else NODES[::-1]:
                measured[stage].append(measure(stage, nodes, UNITS[stage]))
                print(f"round {i + 1}: {stage}: {measured[stage][-1]}", flush=True)
    result = summarise(measured)
    if args.out.exists():
        result["stages"] = json.loads(args.out.read_text())["stages"] | result["stages"]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(result, indent=1) + "\n", args.out)
    print(f"\n{table(result['stages'])}\nMedian of {args.rounds} rounds. {args.out}")


if __name__ == "__main__":
    main()
