"""The run itself is ended: by `ray job stop`, or with the head."""

import time

import pyarrow.parquet as pq
import pytest

from tests.faults.work import (
    Work,
    assert_same,
    cluster_of,
    ended,
    finished,
    reach,
    say,
    step,
    units,
)
from tests.tools.waiting import until

pytestmark = pytest.mark.faults


def test_ray_job_stop_then_submit_again(whole: Work) -> None:
    """Stopped in sampling, again in training; what is finished is taken up."""
    root = whole.begin("stopped", "whole", "sample", "rank", "build_preferences", "align")
    with cluster_of("gpu", "cpu") as (cluster, _):
        moments = {
            "sample_train": lambda: units(root, "sample_train") >= 30,
            "align_rsft": lambda: step(root, "align_rsft") >= 5,
        }
        for stage, moment in moments.items():
            job = whole.submit(cluster, "stopped", stage)
            reach(cluster, job, moment)
            cluster.jobs().stop_job(job)
            stopping = time.monotonic()
            assert ended(cluster, job) == "STOPPED"
            stopped = time.monotonic() - stopping
            until(
                lambda: not [a for a in cluster.state("actors") if a.state == "ALIVE" and "MapWorker" in a.class_name]
            )
            say(f"ray job stop during {stage}", status=stopped, no_worker=time.monotonic() - stopping)
            assert not finished(root, stage)
        whole.succeed(cluster, "stopped", "again")
    assert_same(whole.runs("whole"), root)


def test_head_killed_then_a_new_cluster(whole: Work) -> None:
    """The driver goes with the head, and the other nodes end by themselves; meanwhile the new cluster works already."""
    root = whole.begin("headless", "whole", "sample", "rank", "build_preferences", "align")
    with cluster_of("gpu", "cpu") as (old, nodes):
        job = whole.submit(old, "headless")
        reach(old, job, lambda: units(root, "sample_train") >= 30)
        old.kill(old.head)
        killed, before = time.monotonic(), units(root, "sample_train")
        with cluster_of("gpu", "cpu") as (new, _):
            up = time.monotonic() - killed
            again = whole.submit(new, "headless")
            reach(new, again, lambda: units(root, "sample_train") > before)
            first = time.monotonic() - killed
            # The old run has ended where it was: what is there is whole, and no stage is taken for finished.
            assert not finished(root, "sample_train")
            assert all(pq.read_table(path).num_rows for path in root.glob("sample_train-*/data/*.parquet"))
            until(lambda: all(node.failed() for node in nodes))
            gone = time.monotonic() - killed
            say("head killed during sampling", new_cluster=up, next_unit=first, old_nodes_gone=gone)
            assert ended(new, again) == "SUCCEEDED"
    assert before < 120
    assert_same(whole.runs("whole"), root)
