"""Ranking and sampling on one and on two worker nodes, each a raylet of its own that is pinned to one core.

usage: python benchmarks/scaling.py [--rounds 2] [--stages ranking small_ranking sampling dispatch_1 dispatch_4 ...]
       [--out docs/results/bench_scaling.json]

All but dispatch needs `make quickstart`, `make wiki-small` and `make bench-rank`: queries, candidates, model, and
indexes. `ranking` is
on 2 M passages, where a rank costs what it costs on a corpus that one would want nodes for; `small_ranking` is on the
quickstart's 89,451, where the driver's work for a rank is almost as long. The work is that of the stages: the same
workers, in the same pools, under the same driver, which runs on the head as a submitted job's does. A worker's rate is
what it made between the ends of its first and last units over the time between them, so that starting (processes,
models, compiled loops) does not count; it is given apart. Head and driver are not pinned: they take their time from the
same cores, which costs two nodes more than it would on their own machines. So Linux is asked how long each worker was
ready to run while another process had its core (schedstat), and the efficiency is given with and without that time;
waiting for the driver is in both. `dispatch_n` is units without any work, n of them to a task: what one driver can hand
out. Right only on an idle machine. About 15 minutes.
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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from aqe.units import Pool, Unit, Work

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from generation import cpu_name  # noqa: E402
from gold_rank import BENCH, artifact  # noqa: E402

RUN = "quickstart"
NODES = (1, 2)
#: Units a task, by stage: a GPU's stages hand out single units, quick ones several at a time.
AT_ONCE = {f"dispatch_{units}": units for units in (1, 4, 16, 32, 64)}
#: Pool and what is counted.
STAGES = {
    "ranking": ("cpu", "ranks"),
    "small_ranking": ("cpu", "ranks"),
    "sampling": ("gpu", "tokens"),
    **dict.fromkeys(AT_ONCE, ("cpu", "units")),
}
UNITS = {
    "ranking": 120,
    "small_ranking": 200,
    "sampling": 10,
    **{stage: 1000 + 200 * units for stage, units in AT_ONCE.items()},
}
#: Queries a unit. Eight, the default, are ranked in 10 ms on a small index: what a unit costs beside them would be
#: measured.
UNIT = {"ranking": 25, "small_ranking": 100, "sampling": 8}
#: The run whose queries and candidates are ranked.
RANKED = {"ranking": "wiki_small", "small_ranking": RUN}
LARGE = BENCH / "synthetic_2m" / "impacts"
#: Each worker's first unit is not measured.
FEWEST_UNITS = 4
#: Runs whose stages' own measurements are kept beside for benchmarks/cost_model.py, and which of these.
RUNS = ("quickstart", "wiki_small")
KEPT = ("cpu_hours", "passages", "postings", "bytes", "rows", "candidates", "tokens", "tokens_per_second", "steps")


class Asked(NamedTuple):
    """What `run_units` is asked for."""

    units: "Sequence[Unit]"
    work: "Work"
    pool: "Pool"


class Timed:
    """A stage's worker that notes of each unit its end, its count, and how long others have had the core until then."""

    def __init__(self, *opened: Any, make: Callable[..., Any], args: Mapping[str, Any], noun: str, log: str) -> None:
        self._noun, self._log = noun, Path(log) / str(os.getpid())
        self._work = make(*opened, **args)

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


def no_rows(unit: "Unit") -> list[Any]:
    """In the place of a reader."""
    return []


def manifest(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / "manifest.json").read_text())
    return found


def parent(stage: str, run: str = RUN) -> Path:
    """The artifact of `stage` that was ranked, or ranked on."""
    (name,) = (name for name in manifest(artifact(run, "rank_train"))["parents"] if name.startswith(f"{stage}-"))
    return ROOT / "runs" / run / name


def ranking(stage: str) -> Asked:
    """Gold ranks as the run computed them, on its index or on the large one."""
    from aqe.artifact import Artifact, Slices, load
    from aqe.config.data import IndexConfig
    from aqe.config.rank import RankConfig
    from aqe.nodes import nodes_of
    from aqe.rank.retriever import Retriever
    from aqe.rank.workers import QueryReader, RankWorker
    from aqe.units import Work, cut_units, with_files

    run = RANKED[stage]
    settings = manifest(artifact(run, "rank_train"))["config"]
    config = RankConfig(**{key: settings[key] for key in ("query_weight", "distinct_words")})
    index = Artifact(LARGE, {}) if stage == "ranking" else load(parent("build_impacts", run))
    retriever = Retriever(index, config, IndexConfig())
    pool = retriever.pool(nodes_of("cpu"))
    samples = load(parent("sample_train", run))
    queries = parent("judge_queries", run) / "queries.parquet"
    units = with_files(cut_units(len(Slices(queries)), UNIT[stage]), "expansions", samples)
    args = {"config": config, "stage": "rank_train"}
    reader, source = QueryReader(queries, samples.path / "data"), retriever.source(pool.labels)
    return Asked(units, Work(RankWorker, args, reader, RankWorker.schema, quick=True, source=source), pool)


def sampling() -> Asked:
    """Candidates as the run drew them."""
    from aqe.artifact import Slices
    from aqe.base_model import resolve_model
    from aqe.config.data import ModelConfig
    from aqe.config.sample import EngineConfig
    from aqe.nodes import nodes_of
    from aqe.records import SAMPLES
    from aqe.sample.engine import Sampling
    from aqe.sample.load import EngineSource
    from aqe.sample.plan import PlanReader
    from aqe.sample.stage import SampleWorker, engine_pool
    from aqe.units import Work, cut_units

    sampled = parent("sample_train")
    about = manifest(sampled)
    settings, engine = about["config"]["sampling"], about["stats"]["engine"]
    source = EngineSource(engine, str(resolve_model(ModelConfig()).path), EngineConfig(name=engine))
    args = {"sampling": Sampling(**{**settings, "stop": tuple(settings["stop"])}), "stage": "sample_train"}
    plan = sampled / "plan.parquet"
    units = cut_units(len(Slices(plan)), UNIT["sampling"])
    return Asked(
        units,
        Work(SampleWorker, args, PlanReader(plan), SAMPLES, source=source),
        engine_pool(EngineConfig(name=engine), nodes_of("gpu")),
    )


def dispatch(stage: str) -> Asked:
    """Units of nothing, so many to a task."""
    from aqe import pools, units
    from aqe.nodes import nodes_of
    from aqe.records import RANKS

    pools.MOST_AT_ONCE, pools.TASKS_A_WORKER = AT_ONCE[stage], 1
    nodes = nodes_of("cpu")
    work = units.Work(Nothing, {}, no_rows, RANKS, quick=True)
    return Asked(units.cut_units(UNITS[stage], 1), work, units.Pool(sum(nodes.cpus), num_cpus=0.9, labels=nodes.labels))


def drive(stage: str, out: Path) -> None:
    """The driver: work through units on the cluster that RAY_ADDRESS names."""
    import ray

    from aqe.pools import run_units
    from aqe.run import Run

    ray.init(runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "platform")}}, log_to_driver=False)
    asked = sampling() if stage == "sampling" else dispatch(stage) if stage in AT_ONCE else ranking(stage)
    # The same units again where there are not enough.
    count = len(asked.units)
    units = [
        replace(asked.units[i % count], name=f"{i // count}-{asked.units[i % count].name}") for i in range(UNITS[stage])
    ]
    (out / "log").mkdir(parents=True)
    timed = {"make": asked.work.make, "args": asked.work.args, "noun": STAGES[stage][1], "log": str(out / "log")}
    run = Run(out, max_dead_share=0.0)
    run_units(run, stage, out, units, replace(asked.work, make=Timed, args=timed), asked.pool)


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


def measure(stage: str, nodes: int) -> dict[str, Any]:
    """One run on one cluster of `nodes` worker nodes."""
    from cluster.local.nodes import cluster

    kind, noun = STAGES[stage]
    with cluster() as made, tempfile.TemporaryDirectory(prefix="scaling") as directory:
        for node in [made.launch(kind, core=core) for core in range(nodes)]:  # type: ignore[arg-type]
            made.joined(node)
        out, started = Path(directory) / "out", time.time()
        subprocess.run(
            [sys.executable, __file__, "--drive", stage, "--directory", str(out)],
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
        "units": UNITS[stage],
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
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    return {
        "benchmark": "scaling",
        "run": RUN,
        "queries_per_unit": UNIT,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2)},
        "versions": {"python": platform.python_version(), **versions("ray", "torch", "transformers", "numba")},
        "stages": stages,
        "runs": {run: costs(run) for run in RUNS if (ROOT / "runs" / run).exists()},
    }


def costs(run: str) -> dict[str, Any]:
    """What the stages of a finished run say that they took."""
    found = {}
    for stage in ("build_index", "build_impacts", "sample_train", "align_rsft", "align_rsft_dpo"):
        stats = manifest(artifact(run, stage))["stats"]
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
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        drive(args.drive, args.directory)
        return
    if len(os.sched_getaffinity(0)) < max(NODES):
        parser.error(f"{max(NODES)} nodes pinned to a core each need {max(NODES)} cores")
    from aqe.artifact import write_text

    measured: dict[str, list[dict[str, Any]]] = {stage: [] for stage in args.stages}
    for i in range(args.rounds):
        for stage in args.stages:
            # Every other round in the other order: what drifts meanwhile hits both.
            for nodes in NODES if i % 2 == 0 else NODES[::-1]:
                measured[stage].append(measure(stage, nodes))
                print(f"round {i + 1}: {stage}: {measured[stage][-1]}", flush=True)
    result = summarise(measured)
    if args.out.exists():
        before = json.loads(args.out.read_text())
        result |= {key: before[key] | result[key] for key in ("stages", "runs")}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(result, indent=1) + "\n", args.out)
    print(f"\n{table(result['stages'])}\nMedian of {args.rounds} rounds. {args.out}")


if __name__ == "__main__":
    main()
