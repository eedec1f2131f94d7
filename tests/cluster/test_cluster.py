"""Cluster files are what Ray accepts and agree with each other, and pages are what the code says."""

import itertools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from aqe.config import reference
from aqe.exits import QUIET
from aqe.report.pages import fill
from tests.tools.cluster import ROOT, UniqueKeys, proxy_env, read, start_options

#: Every YAML file of the repository, by the test that knows its keys.
CHECKED = {
    "ray_cluster.yaml": "test_ray_up_accepts_the_cluster_file",
    "jobs/runtime_env.yaml": "test_runtime_env_finds_the_code",
    "platform/aqe/presets/*.yaml": "tests/config/test_config.py",
    "serve/*.yaml": "tests/serve/test_config.py",
    "cluster/kuberay/*.yaml": "test_kuberay.py",
    "cluster/observability/*.yaml": "test_observability.py",
    "examples/beir/*.yaml": "tests/test_examples.py",
    "mkdocs.yml": "test_the_website_shows_every_page",  # and `make site`, which is strict
}


def accept(config: dict[str, Any]) -> dict[str, Any]:
    """Ray's defaults and Ray's check, as in `ray up`."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


def test_every_yaml_has_a_check() -> None:
    hidden = {".venv", ".tool", "runs", "dist"}
    found = {p.relative_to(ROOT) for p in ROOT.rglob("*.y*ml") if not hidden & set(p.relative_to(ROOT).parts)}
    for path in found:
        assert any(path.match(pattern) for pattern in CHECKED), f"{path}: which test knows its keys?"
        for document in yaml.load_all((ROOT / path).read_text(), UniqueKeys):
            assert document
    assert all(any(path.match(pattern) for path in found) for pattern in CHECKED)


def test_ray_up_accepts_the_cluster_file() -> None:
    from jsonschema import ValidationError
    from ray._private.label_utils import validate_node_label_syntax

    config = read("ray_cluster.yaml")
    types = accept(config)["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}, "no work on the head"
    assert {name for name, kind in types.items() if "GPU" in kind["resources"]} == {"gpu"}
    for name, kind in types.items():
        assert kind["labels"]["pool"] == name
        validate_node_label_syntax(kind["labels"])
        if name != "head":
            # A stage's pool is as large as the nodes of its kind.
            assert 1 <= kind["min_workers"] < kind["max_workers"] <= config["max_workers"]
            assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": kind["labels"]["ray.io/market-type"]}
    # What Ray passes over is found.
    config["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(ValidationError, match="min_worker"):
        accept(config)


def test_nodes_start_as_the_image_and_the_service_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.cli_logger import cli_logger
    from ray.autoscaler._private.commands import warn_about_bad_start_command

    config = read("ray_cluster.yaml")
    warnings: list[str] = []
    monkeypatch.setattr(cli_logger, "warning", lambda text, *_: warnings.append(text))
    warn_about_bad_start_command(config["head_start_ray_commands"])
    assert not warnings
    options = " ".join(config["docker"]["run_options"])
    volumes = [volume.split(":")[1] for volume in re.findall(r"-v (\S+)", options)]
    mounted = [*config["file_mounts"], *volumes]
    token = re.findall(r"RAY_AUTH_TOKEN_PATH=(\S+)", options)
    args = read("serve/config.yaml")["applications"][0]["args"]
    for path in (*token, args["keys_file"], args["model"]):
        assert any(Path(path).is_relative_to(mount) for mount in mounted), f"{path} is in no container"
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        stop, start = commands
        program, verb, *arguments = start.split()
        assert (stop, verb) == ("ray stop", "start")
        assert program == "/opt/aqe/cluster/ray" and (ROOT / "cluster/ray").exists()
        given = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)
        assert set(given) <= start_options()
        assert given["object-spilling-directory"] in volumes and int(given["object-store-memory"]) > 1e9
        assert given.get("dashboard-host", "127.0.0.1") == "127.0.0.1"


def test_start_sets_the_proxys_variables_and_leaves_the_checkout(tmp_path: Path) -> None:
    ray = tmp_path / "ray"
    ray.write_text('#!/bin/sh\npwd; ls -A | wc -l; echo "$@"; env\n')
    ray.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "cluster" / "ray"), "start", "--head", "--port=6379"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "TMPDIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    directory, files, arguments, *env = done.stdout.splitlines()
    assert Path(directory).parent == tmp_path and files.strip() == "0"
    assert arguments == "start --head --port=6379"
    seen = dict(line.split("=", 1) for line in env)
    assert {**proxy_env(), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}.items() <= seen.items()


def test_images_report_nothing() -> None:
    for image in (ROOT / "cluster").glob("Dockerfile*"):
        assert re.search(
            r"^ENV .*RAY_USAGE_STATS_ENABLED=0 HF_HUB_DISABLE_TELEMETRY=1", image.read_text(), re.MULTILINE
        )


def test_the_guide_says_what_ray_accepts_on_google_cloud() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    block = re.search(r"```yaml\n# Google Cloud\n(.*?)```", page, re.DOTALL)
    assert block is not None, "docs/cluster.md has no ```yaml block that begins with # Google Cloud"
    config = read("ray_cluster.yaml")
    changes = yaml.load(block[1], UniqueKeys)
    for name, kind in changes.pop("available_node_types").items():
        config["available_node_types"][name] |= kind
    prepared = accept({**config, **changes})
    assert prepared["provider"]["type"] == "gcp"
    assert all("machineType" in kind["node_config"] for kind in prepared["available_node_types"].values())


def test_the_guide_names_options_that_ray_start_has() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    commands = re.findall(r"cluster/ray start ((?:--.*\\\n)*.*)", page)
    assert len(commands) >= 3
    for command in commands:
        assert {option.partition("=")[0] for option in re.findall(r"--([\w-]+)", command)} <= start_options()


def test_runtime_env_finds_the_code() -> None:
    env = read("jobs/runtime_env.yaml")
    assert env["env_vars"]["PYTHONPATH"] == "platform"
    # What `aqe` tells a Ray of its own; a cluster's nodes decide by themselves whether they report their use.
    ours = {name: value for name, value in QUIET.items() if name != "RAY_USAGE_STATS_ENABLED"}
    assert ours.items() <= env["env_vars"].items() and "HF_HUB_DISABLE_TELEMETRY" in ours
    assert all(isinstance(value, str) for value in env["env_vars"].values())


@pytest.mark.parametrize(("name", "blocks"), [("README.md", 2), ("docs/results.md", 16)])
def test_tables_of_pages_are_those_of_the_committed_results(name: str, blocks: int) -> None:
    page = (ROOT / name).read_text()
    assert page.count("<!-- end -->") >= blocks
    assert page == fill(page, ROOT / "docs" / "results"), "run `make docs`"


def leaves(tree: Any) -> list[str]:
    """The pages of a navigation."""
    if isinstance(tree, str):
        return [tree]
    return [page for part in (tree.values() if isinstance(tree, dict) else tree) for page in leaves(part)]


def test_the_website_shows_every_page() -> None:
    """Whether each that it names is there, `make site` asks."""
    named = leaves(read("mkdocs.yml")["nav"])
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert len(named) == len(set(named)) and pages and pages <= set(named)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_a_list_has_an_empty_line_before_it(page: Path) -> None:
    """Without one the website makes a paragraph of it, where others make a list."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"(- |\d+\. )\S", line):
            assert not before or re.match(r"- |\d+\. |  ", before), f"{before}\n{line}"


def test_configuration_page_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == reference.page(), "run `make docs`"
