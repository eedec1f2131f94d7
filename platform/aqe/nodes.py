"""The nodes that a stage may use, and what it asks of Ray to get them.

On a cluster whose nodes carry the label `pool` (ray_cluster.yaml, cluster/kuberay), what generates and trains asks for
`pool=gpu`, and all else (reading, indexing, judging, ranking, preferences) for `pool=cpu`: no stage lands on the wrong
kind, or on the head. On a Ray without such labels, as on a machine of one's own, nothing is asked for and all nodes are
used.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray

from aqe.errors import DependencyError

LABEL = "pool"
NodeKind = Literal["gpu", "cpu"]

_WORK: Mapping[NodeKind, str] = {
    "gpu": "sampling, evaluation and training",
    "cpu": "reading, indexing, judging, ranking and preferences",
}


@dataclass(frozen=True)
class Nodes:
    """Nodes of one kind, as they are when a stage begins."""

    cpus: tuple[int, ...]
    """CPUs of each; nodes without any do not count."""
    gpus: int
    """GPUs of all of them."""
    labels: Mapping[str, str]
    """For Ray's `label_selector`; empty where nodes are not labelled."""
    grows: bool = False
    """An autoscaler may bring more."""


def nodes_of(kind: NodeKind) -> Nodes:
    """The nodes that are up now. Needs a connection to Ray. Raises DependencyError as `choose` does."""
    # The first autoscaler does not know labels.
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    return choose(kind, ray.nodes(), grows=is_autoscaler_v2(fetch_from_server=True))


def on_node(
    nodes: Nodes,
    function: Callable[..., Any],
    *args: Any,
    env: Mapping[str, str] | None = None,
    gpu: bool = False,
    **kwargs: Any,
) -> Any:
    """`function(*args, **kwargs)` as one Ray task on one of `nodes`, in a process that starts with `env`."""
    task = ray.remote(function).options(
        num_cpus=1,
        num_gpus=int(gpu),
        label_selector=dict(nodes.labels),
        runtime_env={"env_vars": dict(env)} if env else None,
    )
    return ray.get(task.remote(*args, **kwargs))


def choose(kind: NodeKind, nodes: Sequence[Mapping[str, Any]], *, grows: bool) -> Nodes:
    """Those of `ray.nodes()` that are of a kind; all of them where none is labelled.

    Where there is none yet, but an autoscaler, the first one that it will bring. Raises DependencyError where there is
    neither: Ray would wait for ever.
    """
    alive = [node for node in nodes if node["Alive"]]
    there = Counter(node["Labels"][LABEL] for node in alive if LABEL in node["Labels"])
    labels = {LABEL: kind} if there else {}
    fit = [node["Resources"] for node in alive if not labels or node["Labels"].get(LABEL) == kind]
    fit = [resources for resources in fit if resources.get("CPU", 0) >= 1]
    if fit:
        gpus = int(sum(resources.get("GPU", 0) for resources in fit))
        return Nodes(tuple(int(resources["CPU"]) for resources in fit), gpus, labels, grows)
    if grows:
        return Nodes((1,), int(kind == "gpu" and bool(labels)), labels, grows)
    up = ", ".join(f"{count} {LABEL}={name}" for name, count in sorted(there.items())) or f"{len(alive)} without labels"
    wanted = f"a node with CPUs{f' and the label {LABEL}={kind}' if labels else ''}"
    raise DependencyError(
        f"{_WORK[kind]} need {wanted}, but the Ray cluster has none, and no autoscaler that knows labels and could "
        f"bring one. Nodes that are up: {up}. Start one, for instance with `ray start --address=HEAD:6379 "
        f"--labels={LABEL}={kind}`, wait until `ray status` counts it, and submit again: what is finished is kept."
    )
