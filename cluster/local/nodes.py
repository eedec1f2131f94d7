"""Several Ray nodes on this machine, each a raylet of its own as on machines of their own: for trying a cluster and
for tests.

usage: python -m cluster.local.nodes up|down

`up` starts a head without work, a node labelled `pool=gpu` (which has the machine's GPUs, if there are any) and two
labelled `pool=cpu`, all of them by cluster/ray with a token, says how to use them, and ends; they stay, whatever
becomes of the terminal, until `down`.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.local.ray_head import (
    START_SECONDS,
    Head,
    environment,
    failure,
    kill_all,
    launch,
    new_directory,
    start_head,
)
from cluster.local.submit import ROOT, job_client, submit

Kind = Literal["gpu", "cpu"]

RAY = str(ROOT / "cluster" / "ray")
#: A node that was killed is missed after 3 s instead of 15; one that is only slow, not before 30.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True)
class Node:
    """A worker node. Its name, such as cpu-2, is Ray's `node_name` too."""

    name: str
    kind: Kind
    directory: Path
    failed: Callable[[], bool]


class Cluster:
    """A head and its nodes; all that they write lies below `directory`."""

    def __init__(
        self,
        directory: Path,
        more_env: Mapping[str, str] | None = None,
        *head_options: str,
        port: int | None = None,
        outlive: bool = False,
    ) -> None:
        """Start the head, with further options of `ray start`. `more_env` is set for all nodes."""
        self.directory = directory
        self._token = directory / "token"
        self._more_env = {**HEALTH, **(more_env or {})}
        self._outlive = outlive
        self.nodes: list[Node] = []
        """All that were started, in that order; some may be dead."""
        own = directory / "head"
        own.mkdir()
        self.head: Head = start_head(
            own,
            self._token,
            *("--num-cpus=0", "--num-gpus=0", "--labels=pool=head", "--node-name=head", *head_options),
            port=port,
            more_env=self._more_env,
            start=(RAY, "start"),
            outlive=outlive,
        )

    def launch(self, kind: Kind, *, cpus: int = 1, core: int | None = None) -> Node:
        """Begin to start a node that offers `cpus` CPUs, pinned to one `core` of the machine if it is named.

        Unless the cluster outlives it, a node ends with the thread that started it.
        """
        name = f"{kind}-{1 + sum(node.kind == kind for node in self.nodes)}"
        directory = self.directory / name
        directory.mkdir()
        command = [
            *(() if core is None else ("taskset", "--cpu-list", str(core))),
            *(RAY, "start", "--block", f"--address={self.head.gcs}", f"--node-name={name}", f"--labels=pool={kind}"),
            # The whole of 127/8 is this machine.
            f"--node-ip-address=127.0.0.{2 + len(self.nodes)}",
            *(f"--num-cpus={cpus}", *(() if kind == "gpu" else ("--num-gpus=0",)), "--object-store-memory=500000000"),
            # Ray's defaults are fixed numbers, which the nodes of one machine cannot all have.
            *("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"),
            f"--temp-dir={directory}/ray",
        ]
        env = environment(directory, self._token, self._more_env)
        process = launch(command, directory, env, outlive=self._outlive)
        self.nodes.append(Node(name, kind, directory, lambda: process.poll() is not None))
        return self.nodes[-1]

    def joined(self, node: Node) -> Node:
        """Wait until the head knows the node. Raises SystemExit with the end of its log where that fails."""
        deadline = time.monotonic() + START_SECONDS
        while not any(one.node_name == node.name and one.state == "ALIVE" for one in self.state("nodes")):
            if node.failed() or time.monotonic() > deadline:
                raise failure(node.directory)
            time.sleep(0.5)
        return node

    def add(self, kind: Kind, *, cpus: int = 1, core: int | None = None) -> Node:
        """`launch` a node and wait for it."""
        return self.joined(self.launch(kind, cpus=cpus, core=core))

    def kill(self, node: Node | Head) -> None:
        """SIGKILL all processes of a node at once, as if its machine lost power."""
        kill_all(node.directory)

    def state(self, resource: str) -> list[Any]:
        """What Ray's state API lists: `nodes`, `actors`, `tasks`, ... (ray.util.state.common has their columns)."""
        from ray.util.state.api import StateApiClient
        from ray.util.state.common import ListApiOptions, StateResource

        client = StateApiClient(self.head.address, headers=self.head.headers)
        options = ListApiOptions(limit=10_000, detail=True)
        return list(client.list(StateResource(resource), options, raise_on_missing_output=False))

    def submit(self, job: str, *options: str, name: str) -> None:
        """`ray job submit` jobs/`job`.py with its options, under the submission id `name`."""
        submit(self.head, job, options, name)

    def jobs(self) -> Any:
        """A JobSubmissionClient: status, log and end of what was submitted."""
        return job_client(self.head)


@contextlib.contextmanager
def cluster(*kinds: Kind, more_env: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A head and one node of one CPU of each of `kinds`, all up; killed at the end. `more_env` is set for all."""
    directory = new_directory()
    try:
        started = Cluster(directory, more_env)
        for node in [started.launch(kind) for kind in kinds]:
            started.joined(node)
        yield started
    finally:
        kill_all(directory)
        shutil.rmtree(directory, ignore_errors=True)


def state_file() -> Path:
    """Where `up` notes what it started."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "aqe" / "cluster.json"


def up() -> int:
    """Exit code."""
    note = state_file()
    if note.exists():
        print(f"A cluster is up already, or was: {note}. `make cluster-down` stops it.", file=sys.stderr)
        return 1
    started = time.monotonic()
    directory = new_directory()
    note.parent.mkdir(parents=True, exist_ok=True)
    # Before anything starts: `down` stops what an interrupted `up` has left, too.
    note.write_text(json.dumps({"directory": str(directory)}))
    cores = len(os.sched_getaffinity(0))
    machines = Cluster(directory, outlive=True)
    nodes = [machines.launch("gpu", cpus=cores), *(machines.launch("cpu", cpus=max(1, cores // 2)) for _ in range(2))]
    for node in nodes:
        machines.joined(node)
    env = machines.head.env
    print(
        f"A head and {', '.join(node.name for node in nodes)} are up after {time.monotonic() - started:.0f} s.\n"
        f"Dashboard: {machines.head.address}, which asks for the token in {env['RAY_AUTH_TOKEN_PATH']}.\n\n"
        f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={env['RAY_AUTH_TOKEN_PATH']}"
        f" RAY_API_SERVER_ADDRESS={machines.head.address}\n"
        f"{Path(sys.executable).parent}/ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- \\\n"
        f'  python jobs/run_pipeline.py --config demo --base-dir "$PWD"\n\n'
        "`make cluster-down` stops them."
    )
    return 0


def down() -> int:
    """Exit code."""
    note = state_file()
    if not note.exists():
        print("No cluster is up.")
        return 0
    directory = Path(json.loads(note.read_text())["directory"])
    kill_all(directory)
    shutil.rmtree(directory, ignore_errors=True)
    note.unlink()
    print("The cluster is down.")
    return 0


def main() -> int:
    """Exit code."""
    commands = {"up": up, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        print("usage: python -m cluster.local.nodes up|down", file=sys.stderr)
        return 2
    return commands[sys.argv[1]]()


if __name__ == "__main__":
    raise SystemExit(main())
