"""A fault at a random moment, again and again: whatever it hits, the run ends as one that nothing disturbed.

usage: PYTHONPATH=platform python -m tests.faults.random_moments [--seed 0] [--repetitions 5]

Each repetition starts from nothing on a cluster of its own: corpus, index, sampling, ranking, preferences, RSFT, DPO.
"""

import argparse
import contextlib
import itertools
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from aqe.artifact import MANIFEST, load
from tests.faults.work import Work, assert_same, cluster_of, ended, log, status, write_work
from tests.tools.waiting import until

FAULTS = ("CPU node killed", "GPU node killed and replaced", "job stopped", "head killed")


class Outcome(NamedTuple):
    """One repetition."""

    fault: str
    moment: float
    """Seconds after the job was submitted."""
    stage: str
    """What was in work."""
    submissions: int
    seconds: float
    """From the first submission to the end."""


def in_work(root: Path) -> str:
    """Stages that have begun and are not complete."""
    begun = (path for path in root.glob("*-*") if path.is_dir() and not (path / MANIFEST).exists())
    return ", ".join(sorted(path.name.rsplit("-", 1)[0] for path in begun)) or "between two stages"


def repeat(work: Work, runs: str, fault: str, moment: float) -> Outcome | None:
    """One run with one fault; what is submitted again, is submitted until it succeeds, three times at most.

    None when the run had ended before the moment came.
    """
    root = work.runs(runs)
    with contextlib.ExitStack() as stack:
        cluster, nodes = stack.enter_context(cluster_of("gpu", "cpu", "cpu"))
        job, submissions, started = work.submit(cluster, runs, "1"), 1, time.monotonic()
        until(lambda: time.monotonic() > started + moment or status(cluster, job) == "SUCCEEDED", every=0.5)
        if status(cluster, job) == "SUCCEEDED":
            return None
        stage = in_work(root)
        if fault == "CPU node killed":
            cluster.kill(nodes[2])
        elif fault == "GPU node killed and replaced":
            cluster.kill(nodes[0])
            cluster.add("gpu")
        elif fault == "job stopped":
            cluster.jobs().stop_job(job)
        else:
            cluster.kill(cluster.head)
            cluster, _ = stack.enter_context(cluster_of("gpu", "cpu", "cpu"))
            job, submissions = work.submit(cluster, runs, "2"), 2
        while ended(cluster, job) != "SUCCEEDED":
            assert submissions < 3, log(cluster, job)
            submissions += 1
            job = work.submit(cluster, runs, str(submissions))
        return Outcome(fault, moment, stage, submissions, time.monotonic() - started)


def repetitions(work: Work, seed: int, count: int) -> Iterator[Outcome]:
    """`count` repetitions, compared with the work's undisturbed runs `whole`; every fault in turn, in random order."""
    draw = random.Random(seed)
    whole = work.runs("whole")
    seconds = sum(load(path.parent).stats["wall_seconds"] for path in whole.glob(f"*/{MANIFEST}"))
    faults = [fault for _ in range(-(-count // len(FAULTS))) for fault in draw.sample(FAULTS, len(FAULTS))]
    for i, fault in enumerate(faults[:count]):
        for again in itertools.count():
            runs = f"random-{i}-{again}"
            # A job needs some seconds before its first stage, and between stages.
            outcome = repeat(work, runs, fault, draw.uniform(0, 10 + seconds))
            assert_same(whole, work.runs(runs))
            if outcome is not None:
                yield outcome
                break


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aqe-faults") as directory:
        work = write_work(Path(directory), "align_model", 120)
        with cluster_of("gpu", "cpu", "cpu") as (cluster, _):
            work.succeed(cluster, "whole")
        for outcome in repetitions(work, args.seed, args.repetitions):
            print(line(outcome), flush=True)


def line(outcome: Outcome) -> str:
    """For people."""
    return (
        f"{outcome.fault} at {outcome.moment:.0f} s ({outcome.stage}): the same rows and models, "
        f"{outcome.submissions} submissions, {outcome.seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
