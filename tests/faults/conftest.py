"""The run that nothing disturbs, once for all faults."""

import pytest

from tests.faults.work import Work, cluster_of, write_work


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Work up to the aligned models (sample, rank, prefer, RSFT, DPO), and its undisturbed runs `whole`."""
    work = write_work(tmp_path_factory.mktemp("faults"), "align_model", 120)
    with cluster_of("gpu", "cpu") as (cluster, _):
        work.succeed(cluster, "whole")
    return work
