"""Fixtures that several test files share."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Timings never decide a test: on a busy machine any example may take long.
settings.register_profile("aqe", deadline=None)
settings.load_profile("aqe")


PLATFORM = Path(__file__).parents[1] / "platform"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine with two CPUs, its workers able to import aqe."""
    import ray

    # Sockets live below this directory and their paths may have 107 characters: pytest's own is too long.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as directory:
        os.environ |= {
            "RAY_TMPDIR": directory,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "180",
            "RAY_DEDUP_LOGS": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_metrics_report_interval_ms": "1000",
        }
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=300 * 2**20,
            runtime_env={"env_vars": {"PYTHONPATH": f"{PLATFORM}:{PLATFORM.parent}"}},
        )
        yield
        ray.shutdown()
