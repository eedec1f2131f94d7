"""HAProxy as Ray configures it from serve/proxy.env, before a server of ours: half-sent requests do not close the door."""

import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from cluster.local.ray_head import free_ports
from cluster.local.serve import proxy_env
from tests.tools.waiting import http_server, until

#: What Ray's controller does on a node, without a cluster: write HAProxy's file for one application.
WRITE = """
import json, sys
from ray.serve._private import haproxy
from ray.serve.config import HTTPOptions
file, backend, options = json.loads(sys.argv[1])
server = haproxy.ServerConfig(name="replica", host="127.0.0.1", port=backend)
app = haproxy.BackendConfig(name="aqe", path_prefix="/", app_name="aqe", servers=[server])
config = haproxy.HAProxyConfig(http_options=HTTPOptions(**options), is_head=True, has_received_routes=True)
haproxy.HAProxyApi(config, {"aqe": app}, file)._generate_config_file_internal()
print(haproxy.get_haproxy_binary())
"""
#: Of the test, so that it takes seconds: of the clients' time-out, and connections.
SHORT_S, FEW = 2, 40


@dataclass
class Proxy:
    """A running HAProxy."""

    port: int
    config: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def haproxy(directory: Path, backend: int, **variables: str) -> Iterator[Proxy]:
    """HAProxy with these variables beside those of serve/proxy.env."""
    (port,) = free_ports(1)
    places = {
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
    }
    options = {"host": "127.0.0.1", "port": port, "keep_alive_timeout_s": SHORT_S}
    file = directory / "haproxy.cfg"
    done = subprocess.run(
        [sys.executable, "-c", WRITE, json.dumps([str(file), backend, options])],
        env=os.environ | proxy_env() | places | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    process = subprocess.Popen([done.stdout.split()[-1], "-db", "-f", str(file)], stderr=subprocess.PIPE)
    try:
        until(lambda: process.poll() is not None or httpx.get(f"http://127.0.0.1:{port}/x").status_code > 0)
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        yield Proxy(port, file.read_text())
    finally:
        process.terminate()
        process.communicate()


async def answers(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def slow(request: Request) -> PlainTextResponse:
    await asyncio.sleep(2 * SHORT_S)
    return PlainTextResponse("late")


async def pauses(request: Request) -> StreamingResponse:
    async def pieces() -> Any:
        yield "first "
        await asyncio.sleep(2 * SHORT_S)
        yield "last"

    return StreamingResponse(pieces())


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    methods = ["GET", "POST"]
    routes = [Route("/slow", slow), Route("/pauses", pauses), Route("/{rest:path}", answers, methods=methods)]
    short = {"RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(SHORT_S), "RAY_SERVE_HAPROXY_MAXCONN": str(FEW)}
    with ExitStack() as stack:
        port = int(stack.enter_context(http_server(Starlette(routes=routes))).rpartition(":")[2])
        yield stack.enter_context(haproxy(tmp_path_factory.mktemp("haproxy"), port, **short))


def test_ray_reads_the_variables(tmp_path: Path) -> None:
    env = proxy_env()
    assert int(env["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"]) <= 60
    # One client made 4,200 connections.
    assert int(env["RAY_SERVE_HAPROXY_MAXCONN"]) > 4200
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2.5 * int(env["RAY_SERVE_HAPROXY_MAXCONN"]) + 100:
        pytest.skip("too few open files are allowed here (ulimit -Hn)")
    with haproxy(tmp_path, 9) as made:
        assert f"timeout client {env['RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S']}s" in made.config
        assert f"maxconn {env['RAY_SERVE_HAPROXY_MAXCONN']}" in made.config


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"POST /x HTTP/1.1\r\nhost: x\r\n",
        b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
        b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk", "a whole request, then nothing"],
)
def test_half_sent_requests_end_by_themselves_and_others_get_in(proxy: Proxy, half: bytes) -> None:
    with ExitStack() as stack:
        started = time.monotonic()
        # More than HAProxy takes: the last of them wait in the kernel's queue.
        sockets = [stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port))) for _ in range(FEW + 10)]
        for each in sockets:
            each.sendall(half)
        assert httpx.get(f"{proxy.url}/x", timeout=300).text == "0"
        for each in sockets:
            each.settimeout(300)
            while each.recv(4096):
                pass
        # By default an hour. On a busy machine seconds are long.
        assert time.monotonic() - started < 900


def test_waiting_for_an_answer_does_not_count(proxy: Proxy) -> None:
    assert httpx.get(f"{proxy.url}/slow", timeout=300).text == "late"
    assert httpx.post(f"{proxy.url}/x", content=b"a" * 100_000, timeout=300).text == "100000"
    with httpx.stream("GET", f"{proxy.url}/pauses", timeout=300) as answer:
        assert answer.read() == b"first last"
