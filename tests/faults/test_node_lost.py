"""A node loses power: SIGKILL of its raylet and of all its workers at once."""

import time
from pathlib import Path

import pytest

from aqe.artifact import load
from tests.faults.work import (
    Work,
    assert_same,
    assert_same_rows,
    assert_same_training,
    cluster_of,
    ended,
    finished,
    log,
    only,
    reach,
    say,
    step,
    units,
    write_work,
)
from tests.tools.waiting import until


@pytest.mark.faults
def test_cpu_node_killed_during_ranking(tmp_path: Path) -> None:
    """The other node ranks what is left, the lost one's units too. By Lucene: no half minute to compile loops in."""
    work = write_work(tmp_path, "rank_expansions", 80, "rank.engine=lucene")
    with cluster_of("gpu", "cpu", "cpu") as (cluster, nodes):
        whole = work.succeed(cluster, "whole")
        root = work.begin("killed", "whole", "rank_train")
        job = work.submit(cluster, "killed")
        reach(cluster, job, lambda: units(root, "rank_train") >= 10)
        cluster.kill(nodes[2])
        killed, before = time.monotonic(), units(root, "rank_train")
        first = until(lambda: units(root, "rank_train") > before)
        assert ended(cluster, job) == "SUCCEEDED", log(cluster, job)
        say("CPU node killed during ranking", next_unit=first, end=time.monotonic() - killed)
        assert before < 80
        assert_same_rows(whole, root, "rank_train")


@pytest.mark.faults
def test_gpu_node_killed_during_sampling_and_replaced(whole: Work) -> None:
    """No other node may sample: the work waits for the new one."""
    with cluster_of("gpu", "cpu") as (cluster, nodes):
        root = whole.begin("sampling", "whole", "sample", "rank", "build_preferences", "align")
        job = whole.submit(cluster, "sampling")
        reach(cluster, job, lambda: units(root, "sample_train") >= 30)
        cluster.kill(nodes[0])
        killed, before = time.monotonic(), units(root, "sample_train")
        cluster.add("gpu")
        joined = time.monotonic() - killed
        reach(cluster, job, lambda: units(root, "sample_train") > before)
        first = time.monotonic() - killed
        assert ended(cluster, job) == "SUCCEEDED", log(cluster, job)
        say("GPU node killed during sampling", new_node=joined, next_unit=first)
        assert before < 120
        assert_same(whole.runs("whole"), root)


@pytest.mark.faults
def test_a_training_workers_node_killed_during_rsft_and_during_dpo(whole: Work) -> None:
    """Two workers on two nodes: one of these goes, another comes, both workers go on from the last checkpoint."""
    with cluster_of("gpu", "gpu", "cpu") as (cluster, nodes):
        work = Work(whole.project, whole.job, (*whole.settings, "align.workers=2", "align.micro_batch_size=2"))
        work.begin("two", "whole", "align")
        undisturbed = work.succeed(cluster, "two")
        root = work.begin("training", "two", "align")
        job = work.submit(cluster, "training")
        for stage, node in (("align_rsft", nodes[0]), ("align_rsft_dpo", nodes[1])):

            def reached(count: int, stage: str = stage) -> bool:
                return step(root, stage) >= count or finished(root, stage)

            reach(cluster, job, lambda reached=reached: reached(5))  # type: ignore[misc]
            cluster.kill(node)
            killed, before = time.monotonic(), step(root, stage)
            assert before, "the stage ended before the fault"
            cluster.add("gpu")
            joined = time.monotonic() - killed
            reach(cluster, job, lambda reached=reached, before=before: reached(before + 1))  # type: ignore[misc]
            say(f"training node killed, {stage} at step {before}", new_node=joined, next_step=time.monotonic() - killed)
        assert ended(cluster, job) == "SUCCEEDED", log(cluster, job)
        assert_same_training(undisturbed, root, "align_rsft", "align_rsft_dpo")
        for stage in ("align_rsft", "align_rsft_dpo"):
            assert load(only(root, stage)).stats["resumed"]
            assert not load(only(undisturbed, stage)).stats["resumed"]
