"""A Ray of one's own on this machine: own ports, own directory, own token; stopped by its own process ids.

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
from collections.abc import Iterator, Mapping
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


@dataclass(frozen=True)
class Head:
    """A running head node: where jobs are submitted, where drivers connect, what its clients need around them."""

    address: str
    gcs: str
    env: dict[str, str]
    directory: Path


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def _die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the process that starts this one is gone, even if it was killed."""
    _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _wait(process: subprocess.Popen[bytes], dashboard: int, log: Path) -> None:
    """Until the head answers; its log's end on failure."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", dashboard), timeout=1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.5)
    raise SystemExit(f"Ray did not start. The end of {log}:\n{log.read_text()[-2000:]}")


def _stop(process: subprocess.Popen[bytes], directory: Path) -> None:
    """End the head and all that it started: its process group, and whatever still works in its directory."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    family = []
    for other in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            # Workers rename themselves, so their open log files tell whose they are.
            if str(directory) in " ".join(other.info["cmdline"] or ()) or any(
                f.path.startswith(str(directory)) for f in other.open_files()
            ):
                family.append(other)
    for other in family:
        if other.pid != os.getpid():
            with contextlib.suppress(psutil.Error):
                other.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    psutil.wait_procs(family, timeout=10)
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def ray_head(more_env: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Start a head node with a dashboard on loopback, yield it, stop it. `more_env` is set for it and its clients."""
    # Ray's sockets lie below this directory, and a socket's path may have 107 characters: not below a long TMPDIR.
    directory = Path(tempfile.mkdtemp(prefix="aqe-", dir="/tmp"))
    token = directory / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    gcs, dashboard, agent, client, monitor, head_metrics = free_ports(6)
    env = {
        **{k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")},
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
    ray = str(Path(sys.executable).parent / "ray")
    command = [
        *(ray, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--include-dashboard=true"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
        "--object-store-memory=500000000",
    ]
    log = directory / "head.log"
    with log.open("wb") as out:
        # From a neutral directory: Ray's workers would import this checkout in place of the submitted package.
        process = subprocess.Popen(
            command,
            env=env,
            cwd=directory,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    try:
        _wait(process, dashboard, log)
        yield Head(
            f"http://127.0.0.1:{dashboard}",
            f"127.0.0.1:{gcs}",
            {**env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"},
            directory,
        )
    finally:
        _stop(process, directory)
