"""Ray's own autoscaler on this machine: labels bring the kind of node that a stage asks for, and no other."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.local.nodes import Cluster
from cluster.local.ray_head import free_ports, kill_all, new_directory
from cluster.local.submit import ROOT
from tests.tools.small_project import SMALL, write_project
from tests.tools.waiting import until

#: Ray's provider that starts raylets in place of machines knows its head by this id.
HEAD = "f" * 51 + "00000"
ENV = {
    # Where the autoscaler finds the provider.
    "PYTHONPATH": str(ROOT),
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}


def config(port: int, directory: Path) -> dict[str, Any]:
    """One node that samples from the beginning; of those that rank, up to two when they are asked for."""

    def kind(label: str, cpus: int, least: int, most: int) -> dict[str, Any]:
        resources = {"CPU": cpus, "object_store_memory": 200_000_000}
        labels = {"pool": label}
        return {"resources": resources, "labels": labels, "node_config": {}, "min_workers": least, "max_workers": most}

    return {
        "cluster_name": "local",
        "max_workers": 4,
        "idle_timeout_minutes": 5,
        "provider": {
            # By its own name it looks for a file that Ray's package lacks.
            "type": "external",
            "module": "tests.tools.raylets_as_machines.Provider",
            "directory": str(directory),
            "gcs_address": f"127.0.0.1:{port}",
            "head_node_id": HEAD,
            **dict.fromkeys(("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check"), True),
            "launch_multiple": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": kind("head", 0, 0, 0),
            "gpu": kind("gpu", 1, 1, 2),
            "cpu": kind("cpu", 1, 0, 2),
        },
        # Ray fills in what `ray up` needs, but not for an external provider.
        **{key: {} for key in ("auth", "file_mounts")},
        **{key: [] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        **{key: [] for key in ("initialization_commands", "head_start_ray_commands", "worker_start_ray_commands")},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    }


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    directory = new_directory()
    (port,) = free_ports(1)
    file = directory / "autoscaler.json"
    file.write_text(json.dumps(config(port, directory)))
    try:
        yield Cluster(directory, ENV, f"--autoscaling-config={file}", port=port)
    finally:
        kill_all(directory)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.slow
def test_labels_bring_the_kind_of_node_that_is_asked_for(nodes: Cluster, tmp_path: Path) -> None:
    def alive() -> Counter[str]:
        return Counter(one.labels["pool"] for one in nodes.state("nodes") if one.state == "ALIVE")

    write_project(tmp_path, train=60)
    until(lambda: alive() == {"head": 1, "gpu": 1})
    settings = (*SMALL, "sample.queries_per_unit=1", "rank.queries_per_unit=1", "rank.workers=2")
    options = [option for one in settings for option in ("--set", one)]
    base = ("--config", str(tmp_path / "mine.yaml"), "--base-dir", str(tmp_path))
    nodes.submit("rank_expansions", *base, *options, name="rank")
    client, seen = nodes.jobs(), set()

    def ended() -> bool:
        seen.add(tuple(sorted(alive().items())))
        return bool(client.get_job_status("rank").is_terminal())

    until(ended, every=0.5)
    assert client.get_job_status("rank") == "SUCCEEDED", client.get_job_logs("rank")[-4000:]
    # A node to index on; one more for the second ranker; none of the other kind.
    assert seen == {(*(("cpu", n) for n in [count] if n), ("gpu", 1), ("head", 1)) for count in range(3)}
    pool = {one.node_id: one.labels["pool"] for one in nodes.state("nodes")}
    rankers = [actor.node_id for actor in nodes.state("actors") if "rank_train" in actor.class_name]
    assert len(set(rankers)) == 2 and {pool[node] for node in rankers} == {"cpu"}
