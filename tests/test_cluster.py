"""Cluster files are what Ray accepts, and pages are what the code says."""

import json
from pathlib import Path

import yaml

from aqe.config import reference
from aqe.evaluate.summary import insert, summary

ROOT = Path(__file__).parents[1]


def test_ray_up_accepts_the_cluster_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    validate_config(prepare_config(config))
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}, "no work on the head"
    assert "GPU" in types["gpu"]["resources"]
    assert "GPU" not in types["cpu"]["resources"]


def test_runtime_env_finds_the_code() -> None:
    env = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
    assert env["env_vars"]["PYTHONPATH"] == "platform"
    assert all(isinstance(value, str) for value in env["env_vars"].values())


def test_the_table_of_the_readme_is_that_of_the_committed_results() -> None:
    page = (ROOT / "README.md").read_text()
    metrics = json.loads((ROOT / "docs" / "results" / "quickstart.json").read_text())
    assert page == insert(page, summary(metrics)), "run `make docs`"


def test_configuration_page_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == reference.page(), "run `make docs`"
