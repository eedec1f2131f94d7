"""What a running pipeline does, in a terminal: make monitor

usage: python -m cluster.observability.monitor [--prometheus http://127.0.0.1:9090]

Asks the nodes of the newest Ray on this machine, or a Prometheus that scrapes another one.
"""

import argparse
import json
import os
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import requests
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live
from rich.table import Table

from aqe.observe import metrics
from aqe.observe.progress import duration

DISCOVERY = "prom_metrics_service_discovery.json"
EVERY_SECONDS = 5.0
#: Rates are means over so long: a unit of queries is counted when it is done.
WINDOW_SECONDS = 60.0
#: A node or a Prometheus that has not answered by then is asked again at the next look.
TIMEOUT_SECONDS = 10.0
#: Shown as rates, with their columns' names. The first is that of training too.
RATES = {metrics.GENERATED_TOKENS: "tokens/s", metrics.CANDIDATES: "cand./s", metrics.RANKS: "ranks/s"}


@dataclass(frozen=True)
class Snapshot:
    """Values at one time (seconds): metric's name without `ray_` -> stage -> sum over processes."""

    time: float
    values: dict[str, dict[str, float]]
    silent: tuple[str, ...] = ()
    """Who gave no answer in time: their values are those of their last one."""


Source = Callable[[], Snapshot]
#: Metric's name, stage, value.
Sample = tuple[str, str, float]


def snapshot(samples: Iterable[Sample], silent: Sequence[str] = ()) -> Snapshot:
    """The values of now."""
    values: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, stage, value in samples:
        if name.startswith("ray_aqe_"):
            values[name.removeprefix("ray_")][stage] += value
    return Snapshot(time.monotonic(), {name: dict(stages) for name, stages in values.items()}, tuple(silent))


def prometheus(url: str) -> Source:
    """The newest values that a Prometheus has."""
    last: list[Sample] = []

    def ask() -> Snapshot:
        nonlocal last
        query = {"query": '{__name__=~"ray_aqe_.*"}'}
        try:
            answer = requests.get(f"{url.rstrip('/')}/api/v1/query", params=query, timeout=TIMEOUT_SECONDS)
        except requests.Timeout:
            return snapshot(last, [url])
        answer.raise_for_status()
        series = answer.json()["data"]["result"]
        last = [(s["metric"]["__name__"], s["metric"].get("stage", ""), float(s["value"][1])) for s in series]
        return snapshot(last)

    return ask


def nodes(discovery: Path) -> Source:
    """The newest values that the nodes of a Ray export. One that is gone is left out."""
    last: dict[str, list[Sample]] = {}

    def ask() -> Snapshot:
        targets = [target for group in json.loads(discovery.read_text()) for target in group["targets"]]
        silent = []
        for target in targets:
            try:
                page = requests.get(f"http://{target}/metrics", timeout=TIMEOUT_SECONDS).text
            except requests.Timeout:  # Busy: without its last values all rates would fall, and leap when it is back.
                silent.append(target)
                continue
            except requests.ConnectionError:
                last.pop(target, None)
                continue
            families = text_string_to_metric_families(page)
            last[target] = [(s.name, s.labels.get("stage", ""), s.value) for f in families for s in f.samples]
        return snapshot([sample for target in targets for sample in last.get(target, ())], silent)

    return ask


def newest_ray() -> Path | None:
    """The list of nodes of the Ray that was started last here: by `make demo`, by `make cluster-up`, or by hand."""
    ours = (home for at in ("ray", "head/ray") for home in Path("/tmp").glob(f"aqe-*/{at}"))
    homes = [*ours, Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray"), Path("/tmp/ray")]
    known = [home for home in homes if (home / DISCOVERY).exists()]
    return max(known, key=lambda home: (home / "session_latest").lstat().st_mtime) / DISCOVERY if known else None


def rates(snapshots: Sequence[Snapshot], name: str) -> dict[str, float]:
    """Increase a second of a counter, by stage, between the first snapshot and the last."""
    first, last = snapshots[0], snapshots[-1]
    seconds = last.time - first.time
    before, after = first.values.get(name, {}), last.values.get(name, {})
    return {stage: max(0.0, n - before.get(stage, 0)) / seconds for stage, n in after.items() if seconds}


def table(snapshots: Sequence[Snapshot]) -> Table:
    """A row for each stage that runs or has just done something."""
    now = snapshots[-1]
    by_metric = {name: rates(snapshots, name) for name in RATES}
    running = {stage for name in (metrics.DONE, metrics.BUSY, metrics.TRAIN_LOSS) for stage in now.values.get(name, {})}
    stages = sorted(running | {stage for by_stage in by_metric.values() for stage, rate in by_stage.items() if rate})
    notes = [] if stages or now.silent else ["No stage of a pipeline runs."]
    notes += [f"No answer from {name} within {TIMEOUT_SECONDS:g} s." for name in now.silent]
    shown = Table(box=None, caption="\n".join(notes) or None)
    for column in ("stage", "done", "ETA", "left", "busy", *RATES.values(), "loss", "margin"):
        shown.add_column(column, no_wrap=True, justify="left" if column == "stage" else "right")
    for stage in stages:
        of = {name: values[stage] for name, values in now.values.items() if stage in values}
        tokens, *others = (by_stage.get(stage) for by_stage in by_metric.values())
        shown.add_row(
            stage,
            _form(of.get(metrics.DONE), "{:.0%}"),
            duration(of[metrics.ETA]) if metrics.ETA in of else "",
            _form(of.get(metrics.UNITS_LEFT), "{:.0f}"),
            _form(of.get(metrics.BUSY), "{:.0f}"),
            _form(of.get(metrics.TRAIN_TOKENS, tokens), "{:,.1f}"),
            *(_form(rate, "{:,.1f}") for rate in others),
            _form(of.get(metrics.TRAIN_LOSS), "{:.3f}"),
            _form(of.get(metrics.TRAIN_MARGIN), "{:.3f}"),
        )
    return shown


def _form(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def watch(source: Source, show: Callable[[Table], None]) -> NoReturn:
    """Show it every few seconds until interrupted."""
    snapshots: deque[Snapshot] = deque()
    while True:
        snapshots.append(source())
        while snapshots[-1].time - snapshots[0].time > WINDOW_SECONDS:
            snapshots.popleft()
        show(table(snapshots))
        time.sleep(EVERY_SECONDS)


def main() -> int:
    """0 when interrupted, 2 when there is nothing to watch, or no longer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--prometheus", metavar="URL", help="ask this Prometheus, not the nodes of a Ray on this machine"
    )
    url = parser.parse_args().prometheus
    console = Console()
    if url:
        source, name = prometheus(url), url
    elif ray := newest_ray():
        source, name = nodes(ray), str(ray.parents[1])
    else:
        print("No Ray runs on this machine. Start a pipeline (make demo), or name a Prometheus: --prometheus URL")
        return 2
    try:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False, screen=True) as live:
                watch(source, lambda shown: live.update(shown, refresh=True))
        else:
            watch(source, console.print)
    except KeyboardInterrupt:
        return 0
    except (OSError, requests.RequestException) as error:
        print(f"{name} answers no longer: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
