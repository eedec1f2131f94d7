"""The panels as a Grafana dashboard."""

from collections.abc import Iterator
from typing import Any

from cluster.observability.panels import ROWS, Panel

UID = "aqe"
#: Grafana's grid has 24 columns.
_WIDTH, _HEIGHT, _A_ROW = 8, 8, 3
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """Grafana's JSON model. The variable `datasource` is the one that Ray's dashboard sets in its frames."""
    return {
        "uid": UID,
        "title": "aqe",
        "tags": ["aqe", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for row, panels in ROWS.items():
        number += 1
        place = {"x": 0, "y": y, "w": _WIDTH * _A_ROW, "h": 1}
        yield {"id": number, "type": "row", "title": row, "collapsed": False, "gridPos": place, "panels": []}
        y += 1
        for i, panel in enumerate(panels):
            number += 1
            place = {"x": i % _A_ROW * _WIDTH, "y": y + i // _A_ROW * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            yield _graph(number, panel) | {"gridPos": place}
        y += -(-len(panels) // _A_ROW) * _HEIGHT


def _graph(number: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": expr, "legendFormat": legend}
            for i, (expr, legend) in enumerate(panel.series)
        ],
    }
