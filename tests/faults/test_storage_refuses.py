"""A disk that is full, for a moment or for good, while the stages write on it."""

import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.local.nodes import Cluster
from tests.faults.work import (
    Work,
    assert_same,
    cluster_of,
    ended,
    finished,
    log,
    reach,
    say,
    step,
    units,
)
from tests.tools.small_disk import SmallDisk, small_disk
from tests.tools.waiting import until

pytestmark = pytest.mark.faults


def moments(root: Path) -> dict[str, Callable[[], bool]]:
    """The middle of sampling, of ranking, and of training."""
    return {
        "sample_train": lambda: units(root, "sample_train") >= 30,
        "rank_train": lambda: units(root, "rank_train") >= 10,
        "align_rsft": lambda: step(root, "align_rsft") >= 5,
    }


def test_a_disk_full_for_a_moment_in_each_stage(whole: Work) -> None:
    """Each refused write is tried again; a checkpoint costs training a restart."""
    with small_disk(whole.project / "moment", 64) as disk, cluster_of("gpu", "cpu") as (cluster, _):
        root = whole.begin("moment", "whole", "sample", "rank", "build_preferences", "align")
        job = whole.submit(cluster, "moment")
        for stage, moment in moments(root).items():
            reach(cluster, job, moment)
            full(disk, cluster, job, stage)
        assert ended(cluster, job) == "SUCCEEDED", log(cluster, job)
        assert_same(whole.runs("whole"), root)


def full(disk: SmallDisk, cluster: Cluster, job: str, stage: str) -> None:
    """Fill the disk until the job has met it, then make room."""

    def met() -> int:
        return log(cluster, job).count("No space left")

    before = met()
    disk.fill()
    assert not finished(disk.path / "mine", stage), "the stage ended before the fault"
    seconds = until(lambda: met() > before, every=0.5)
    disk.free()
    say(f"disk full for a moment during {stage}", met=seconds)


def test_a_disk_full_for_good_in_each_stage(whole: Work) -> None:
    """The run fails with one line that says why; nothing half-written is taken for finished; room, and it goes on."""
    with small_disk(whole.project / "good", 64) as disk, cluster_of("gpu", "cpu") as (cluster, _):
        root = whole.begin("good", "whole", "sample", "rank", "build_preferences", "align")
        for stage, moment in moments(root).items():
            job = whole.submit(cluster, "good", stage)
            reach(cluster, job, moment)
            disk.fill()
            assert not finished(root, stage), "the stage ended before the fault"
            filled = time.monotonic()
            assert ended(cluster, job) == "FAILED", log(cluster, job)
            seconds = time.monotonic() - filled
            message = [line for line in log(cluster, job).splitlines() if line.startswith("StorageError:")]
            assert len(message) == 1 and "No space left on device" in message[0] and "run again" in message[0]
            say(f"disk full for good during {stage}", failed=seconds)
            assert not finished(root, stage)
            for path in root.glob(f"{stage}-*/data/*.parquet"):
                assert pq.read_table(path).num_rows > 0
            disk.free()
        whole.succeed(cluster, "good", "again")
        assert_same(whole.runs("whole"), root)
