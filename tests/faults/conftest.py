"""The run that nothing disturbs, once for all faults."""

import time

import pytest

from tests.faults.work import Work, cluster_of, say, write_work


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Work up to the aligned models (sample, rank, prefer, RSFT, DPO), and its undisturbed runs `whole`."""
    work = write_work(tmp_path_factory.mktemp("faults"), "align_model", 120)
    with cluster_of("gpu", "cpu", "cpu") as (cluster, _):
        started = time.monotonic()
        work.succeed(cluster, "whole")
        say("none", end=time.monotonic() - started)
    return work
