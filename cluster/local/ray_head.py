"""A Ray of one's own on this machine: own ports, own directory, own token; stopped by what works in its directory.

`ray stop` would end every Ray on the machine, other people's too.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 180
#: HAProxy's files lie in /tmp for all users of a machine, unless told otherwise.
_HAPROXY_FILES = {
    "CONFIG_FILE_LOC": "/haproxy.cfg",
    "SOCKET_PATH": "/admin.sock",
    "SERVER_STATE_BASE": "",
    "SERVER_STATE_FILE": "/server-state",
}
#: Loaded here: nothing may be loaded between fork and exec.
_LIBC = ctypes.CDLL(None)
_BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A running head node: where jobs are submitted, where drivers connect, what its clients need around them."""

    address: str
    gcs: str
    env: dict[str, str]
    directory: Path

    @property
    def headers(self) -> dict[str, str]:
        """What HTTP requests to `address` show."""
        token = Path(self.env["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
        return {"Authorization": f"Bearer {token}"}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def new_directory() -> Path:
    """A directory for a Ray, with a `token` in it that only this user reads."""
    # Ray's sockets lie below this directory, and a socket's path may have 107 characters: not below a long TMPDIR.
    directory = Path(tempfile.mkdtemp(prefix="aqe-", dir="/tmp"))
    token = directory / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return directory


def environment(directory: Path, token: Path, more_env: Mapping[str, str] | None = None) -> dict[str, str]:
    """That of a node that works in `directory`, and of the head's clients."""
    monitor, head_metrics = free_ports(2)
    return {
        **{k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")},
        "PATH": f"{_BIN}:{os.environ['PATH']}",
        "RAY_TMPDIR": str(directory),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "AUTOSCALER_METRIC_PORT": str(monitor),
        "DASHBOARD_METRIC_PORT": str(head_metrics),
        "RAY_raylet_start_wait_time_s": str(START_SECONDS),
        "RAY_agent_register_timeout_ms": str(START_SECONDS * 1000),
        **{f"RAY_SERVE_HAPROXY_{key}": f"{directory}/haproxy{name}" for key, name in _HAPROXY_FILES.items()},
        **(more_env or {}),
    }


def _die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the thread that starts this process is gone, even if it was killed."""
    _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def launch(
    command: Sequence[str], directory: Path, env: Mapping[str, str], *, outlive: bool = False
) -> subprocess.Popen[bytes]:
    """Run `command` in `directory`, output in its `ray.log`; it ends with its parent unless it may `outlive` it."""
    with (directory / "ray.log").open("wb") as out:
        # From a neutral directory: Ray's workers would import this checkout in place of the submitted package.
        return subprocess.Popen(
            command,
            env=env,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=None if outlive else _die_with_parent,
        )


def failure(directory: Path) -> SystemExit:
    """What to raise when the Ray in `directory` does not come up: the end of its log."""
    log = directory / "ray.log"
    return SystemExit(f"Ray did not start. The end of {log}:\n{log.read_text()[-2000:]}")


def start_head(
    directory: Path,
    token: Path,
    *options: str,
    port: int | None = None,
    more_env: Mapping[str, str] | None = None,
    start: Sequence[str] = (str(_BIN / "ray"), "start"),
    outlive: bool = False,
) -> Head:
    """Start a head node in `directory`, with a dashboard on loopback and further `options` of `ray start`.

    It listens on `port`, or on a free one; `more_env` is set for it and its clients. Whoever calls this calls
    `kill_all(directory)` at the end.
    """
    free, dashboard, agent, client = free_ports(4)
    gcs = port or free
    env = environment(directory, token, more_env)
    command = [
        *(*start, "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--include-dashboard=true"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
        *("--object-store-memory=500000000", *options),
    ]
    process = launch(command, directory, env, outlive=outlive)
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", dashboard), timeout=1):
            break
        if process.poll() is not None or time.monotonic() > deadline:
            raise failure(directory)
        time.sleep(0.5)
    address = f"http://127.0.0.1:{dashboard}"
    return Head(address, f"127.0.0.1:{gcs}", {**env, "RAY_API_SERVER_ADDRESS": address}, directory)


def _family(directory: Path) -> list[psutil.Process]:
    """What works in `directory`: it writes files there, or was told of it.

    Process ids would be forgotten with a node that was killed, and Ray's workers rename themselves. What has a terminal
    is somebody looking at a log.
    """
    inside, family = f"{directory}/", []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid == os.getpid() or process.terminal() is not None:
                continue
            if inside in " ".join(process.cmdline()) or any(
                f.path.startswith(inside) and f.mode != "r" for f in process.open_files()
            ):
                family.append(process)
    return family


def kill_all(directory: Path) -> None:
    """SIGKILL what works in `directory`, until nothing does."""
    # A raylet may start a worker while its family is counted.
    while family := _family(directory):
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(family, timeout=10)


@contextlib.contextmanager
def ray_head(more_env: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Start a head node with a dashboard on loopback, yield it, stop it. `more_env` is set for it and its clients."""
    directory = new_directory()
    try:
        yield start_head(directory, directory / "token", more_env=more_env)
    finally:
        kill_all(directory)
        shutil.rmtree(directory, ignore_errors=True)
