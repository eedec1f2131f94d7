"""What the tests of the cluster's files share."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]


class UniqueKeys(yaml.SafeLoader):
    """YAML's loader, which lets the last of two equal keys win, refusing the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{node.start_mark}: {twice} stands there twice"
        return super().construct_mapping(node, deep)


def read(path: str) -> dict[str, Any]:
    """The only document of a file of this repository."""
    made: dict[str, Any] = yaml.load((ROOT / path).read_text(), UniqueKeys)
    return made


def proxy_env() -> dict[str, str]:
    """serve/proxy.env."""
    lines = (ROOT / "serve" / "proxy.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def start_options() -> set[str]:
    """Options of `ray start`, without dashes."""
    from ray.scripts.scripts import start

    return {option.removeprefix("--") for parameter in start.params for option in parameter.opts}


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Instruction and arguments of each line, continued ones joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if line and not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        name, _, arguments = line.partition(" ")
        yield name, " ".join(arguments.split())


def exported() -> dict[str, set[float]]:
    """What the only node of this process's Ray exports: metric -> values."""
    import ray

    (node,) = ray.nodes()
    page = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10).text
    values: dict[str, set[float]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            values.setdefault(sample.name, set()).add(sample.value)
    return values


@contextlib.contextmanager
def watching() -> Iterator[dict[str, set[float]]]:
    """All values that are exported meanwhile."""
    seen: dict[str, set[float]] = {}
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.2):
            for name, values in exported().items():
                seen.setdefault(name, set()).update(values)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()
