"""What watches the platform names what the platform exports, and alerts when it should."""

import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from aqe.observe import metrics
from cluster.observability.dashboard import dashboard
from cluster.observability.panels import ROWS
from tests.tools.cluster import ROOT, read

HERE = ROOT / "cluster" / "observability"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: apt-get install --no-install-recommends prometheus"
)


def own_metrics() -> set[str]:
    """Names as Prometheus sees them, of metrics that some code besides their table exports."""
    code = "".join(
        path.read_text()
        for directory in ("platform", "serve")
        for path in (ROOT / directory).rglob("*.py")
        if path.name != "metrics.py"
    )
    constants = {value: name for name, value in vars(metrics).items() if isinstance(value, str) and name.isupper()}
    names = set()
    for name in (*metrics.COUNTERS, *metrics.GAUGES, *metrics.HISTOGRAMS):
        if re.search(rf"metrics\.{constants[name]}\b", code):
            names |= {
                f"ray_{name}{end}" for end in (("_bucket", "_sum", "_count") if name in metrics.HISTOGRAMS else ("",))
            }
    return names


def unknown(expression: str) -> set[str]:
    """Metrics in PromQL that nobody exports."""
    named = set(re.findall(r"\b(?:ray|aqe)_\w+", expression))
    found = own_metrics() | {name for name in named if _of_vllm(name) or _of_ray(name)}
    return named - found


def _source(package: str, *files: str) -> str:
    spec = find_spec(package)
    assert spec and spec.submodule_search_locations
    return "".join(Path(spec.submodule_search_locations[0], file).read_text() for file in files)


def _of_vllm(name: str) -> bool:
    if find_spec("vllm") is None:
        return name.startswith("ray_vllm_")
    source = _source("vllm", "v1/metrics/loggers.py")
    return f'"vllm:{name.removeprefix("ray_vllm_").removesuffix("_total")}"' in source


def _of_ray(name: str) -> bool:
    """A node's agent exports it, or Ray's own dashboards show it."""
    dashboards = (f"dashboard/modules/metrics/dashboards/{kind}_dashboard_panels.py" for kind in ("default", "data"))
    source = _source("ray", "dashboard/modules/reporter/reporter_agent.py", *dashboards)
    return re.search(rf'\b{name}\b|"{name.removeprefix("ray_")}"', source) is not None


def test_the_dashboard_is_what_the_panels_say() -> None:
    committed = json.loads((HERE / "dashboard.json").read_text())
    assert committed == dashboard(), "run `make docs`"
    numbers = [panel["id"] for panel in committed["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_panels_and_alerts_name_metrics_that_some_code_exports() -> None:
    for panels in ROWS.values():
        for panel in panels:
            for expression, legend in panel.series:
                assert not unknown(expression), panel.title
                # A label that the sum drops would leave the legend empty.
                assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= set(re.findall(r"\w+", expression)), panel.title
    for rule in alerts():
        assert not unknown(rule["expr"]), rule["alert"]
    assert unknown("sum(rate(ray_aqe_wishes_total[1m])) / ray_node_wishes + ray_vllm_wishes_total") == {
        "ray_aqe_wishes_total", "ray_node_wishes", "ray_vllm_wishes_total",
    }  # fmt: skip


def test_every_metric_is_exported_and_explained() -> None:
    tables = {**metrics.COUNTERS, **metrics.GAUGES, **metrics.HISTOGRAMS}
    assert {name.removeprefix("ray_") for name in own_metrics()} >= set(metrics.COUNTERS) | set(metrics.GAUGES)
    page = "".join((ROOT / "docs" / name).read_text() for name in ("monitoring.md", "serving.md"))
    assert [name for name in tables if f"`{name}`" not in page] == []


def alerts() -> list[dict[str, Any]]:
    return [rule for group in read("cluster/observability/alerts.yaml")["groups"] for rule in group["rules"]]


@needs_promtool
def test_prometheus_accepts_configuration_and_rules() -> None:
    for what, file in (("config", "prometheus.yaml"), ("rules", "alerts.yaml")):
        done = subprocess.run(["promtool", "check", what, str(HERE / file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


#: alert -> series that raise it within 20 minutes, series that do not.
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "AqeNoTokens": (
        {
            'ray_aqe_stage_units_left{stage="sample_train"}': "5x60",
            'ray_aqe_generated_tokens_total{stage="sample_train"}': "700x60",
        },
        {
            'ray_aqe_stage_units_left{stage="sample_train"}': "5x60",
            'ray_aqe_generated_tokens_total{stage="sample_train"}': "0+100x60",
            # No generation at all.
            'ray_aqe_stage_units_left{stage="rank_train"}': "5x60",
        },
    ),
    "AqeDeadLetters": (
        {
            'ray_aqe_rows_total{stage="rank_train"}': "0+100x60",
            'ray_aqe_dead_letters_total{stage="rank_train"}': "0+2x60",
        },
        {
            'ray_aqe_rows_total{stage="rank_train"}': "0+1000x60",
            'ray_aqe_dead_letters_total{stage="rank_train"}': "0+2x60",
        },
    ),
    "AqeServiceErrors": (
        {
            'ray_aqe_serve_requests_total{code="200"}': "0+90x60",
            'ray_aqe_serve_requests_total{code="503"}': "0+10x60",
        },
        {
            'ray_aqe_serve_requests_total{code="200"}': "0+90x60",
            'ray_aqe_serve_requests_total{code="422"}': "0+90x60",
        },
    ),
    "AqeServiceSlow": (
        {
            'ray_aqe_serve_request_seconds_bucket{route="/v1/expand",le="2.5"}': "0+50x60",
            'ray_aqe_serve_request_seconds_bucket{route="/v1/expand",le="5"}': "0+100x60",
            'ray_aqe_serve_request_seconds_bucket{route="/v1/expand",le="+Inf"}': "0+100x60",
        },
        {
            'ray_aqe_serve_request_seconds_bucket{route="/v1/expand",le="1"}': "0+99x60",
            'ray_aqe_serve_request_seconds_bucket{route="/v1/expand",le="+Inf"}': "0+100x60",
        },
    ),
    "AqeNodeMemory": (
        {'ray_node_mem_used{NodeAddress="n"}': "95x60", 'ray_node_mem_total{NodeAddress="n"}': "100x60"},
        {'ray_node_mem_used{NodeAddress="n"}': "80x60", 'ray_node_mem_total{NodeAddress="n"}': "100x60"},
    ),
}


@needs_promtool
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    assert set(CASES) == {rule["alert"] for rule in alerts()}
    tests = []
    for alert, (bad, good) in CASES.items():
        for series, fires in ((bad, True), (good, False)):
            tests.append(
                {
                    "interval": "30s",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    # Labels and words are not looked at: `exp_alerts` would have to repeat them.
                    "promql_expr_test": [
                        {
                            "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                            "eval_time": "20m",
                            "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                        }
                    ],
                }
            )
    (tmp_path / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": [str(HERE / "alerts.yaml")], "evaluation_interval": "30s", "tests": tests})
    )
    done = subprocess.run(["promtool", "test", "rules", str(tmp_path / "tests.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
