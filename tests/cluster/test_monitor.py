"""make monitor: rates and rows, and what it does while a node or a Prometheus does not answer."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from rich.console import Console
from rich.table import Table

from aqe.observe import metrics
from cluster.observability import monitor
from cluster.observability.monitor import Snapshot, Source
from tests.tools.waiting import http_server

STAGE = "sample_train"


class Exporter:
    """A node's metrics and a Prometheus that has scraped them, which both may fall silent."""

    def __init__(self) -> None:
        self.tokens = 100
        self.answers = threading.Event()
        self.answers.set()
        self.app = FastAPI()
        self.app.get("/metrics")(self.node)
        self.app.get("/api/v1/query")(self.prometheus)

    def node(self) -> PlainTextResponse:
        self.answers.wait(60)
        lines = [f'ray_{metrics.GENERATED_TOKENS}{{stage="{STAGE}"}} {self.tokens}']
        return PlainTextResponse("\n".join([*lines, f'ray_{metrics.DONE}{{stage="{STAGE}"}} 0.5', ""]))

    def prometheus(self) -> dict[str, Any]:
        self.answers.wait(60)
        values = {metrics.GENERATED_TOKENS: self.tokens, metrics.DONE: 0.5}
        result = [{"metric": {"__name__": f"ray_{n}", "stage": STAGE}, "value": [0, str(v)]} for n, v in values.items()]
        return {"status": "success", "data": {"result": result}}


@pytest.fixture
def exporter() -> Iterator[tuple[Exporter, str]]:
    exporter = Exporter()
    with http_server(exporter.app) as url:
        yield exporter, url
        exporter.answers.set()


def nodes(url: str, tmp_path: Path) -> Source:
    address = url.removeprefix("http://")
    # Nobody listens on port 1: a node that is gone.
    (tmp_path / "nodes.json").write_text(json.dumps([{"targets": [address, "127.0.0.1:1"]}]))
    return monitor.nodes(tmp_path / "nodes.json")


def shown(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


@pytest.mark.parametrize("source", [nodes, lambda url, tmp_path: monitor.prometheus(url)], ids=["nodes", "prometheus"])
def test_who_does_not_answer_is_named_and_the_watch_goes_on(
    source: Callable[[str, Path], Source],
    exporter: tuple[Exporter, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served, url = exporter
    monkeypatch.setattr(monitor, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(monitor, "EVERY_SECONDS", 0.01)
    pages: list[str] = []

    def show(table: Table) -> None:
        pages.append(shown(table))
        if len(pages) == 1:
            served.answers.clear()
        elif len(pages) == 3:
            served.answers.set()
        elif "No answer" not in pages[-1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        monitor.watch(source(url, tmp_path), show)
    first, *silent, last = pages
    assert len(silent) >= 2 and "No answer" not in first + last
    for page in silent:
        assert f"No answer from {url}" in page or f"No answer from {url.removeprefix('http://')}" in page
        # The stage is still there, and no rate leaps.
        assert STAGE in page and "50%" in page and " 0.0 " in page
    assert STAGE in last


def test_silence_from_the_start_is_said(
    exporter: tuple[Exporter, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, url = exporter
    monkeypatch.setattr(monitor, "TIMEOUT_SECONDS", 0.2)
    served.answers.clear()
    page = shown(monitor.table([nodes(url, tmp_path)()]))
    assert "No answer" in page and "No stage" not in page


def test_rates_are_increases_a_second() -> None:
    values = [{metrics.RANKS: {"a": 10.0}}, {metrics.RANKS: {"a": 40.0, "b": 6.0}}]
    before, after = (Snapshot(10.0 * i, value) for i, value in enumerate(values))
    assert monitor.rates([before, after], metrics.RANKS) == {"a": 3.0, "b": 0.6}
    # A process that begins anew begins at 0.
    assert monitor.rates([after, Snapshot(20.0, values[0])], metrics.RANKS) == {"a": 0.0}
    assert "No stage of a pipeline runs." in shown(monitor.table([Snapshot(0, {})]))
