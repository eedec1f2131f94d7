"""A report's metrics as a table of results: `python -m aqe.report.results runs/NAME/report docs/results/NAME.json`.

By test set: `datasets.<set>.<system>.<measure>`, the same of `pools`, and `differences.<set or pool>.<pair>.<measure>`,
each with value, low and high; a pair is `<a>_vs_<b>`. `relative_gains` likewise, as fractions, for the measures that
decide. Beside them what was chosen on dev, what each system is and what it took.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aqe.artifact import write_text
from aqe.evaluate.compare import DECIDING, DIAGNOSED
from aqe.evaluate.measures import MEASURES

#: What is told of a system beside its measures.
ABOUT = ("label", "note", "num_queries", "num_seeds", "of_seeds", "lists_cut_at", "finished_share", "not_found_share")


def results(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of metrics.json, by test set and pool."""
    parts: Mapping[str, Any] = metrics["parts"]
    tables: dict[str, dict[str, Any]] = {"datasets": {}, "pools": {}}
    for name, part in parts.items():
        tables["datasets" if part["pool"] is None else "pools"][name] = {
            system: {"num_queries": measured["num_queries"], **{m: measured[m] for m in MEASURES}}
            for system, measured in part["systems"].items()
        }
    return {
        **{key: metrics[key] for key in ("num_queries", "confidence", "bootstrap", "seed", "chosen_on_dev", "made")},
        "comparisons": metrics["comparisons"],
        "queries": {name: part["num_queries"] for name, part in parts.items()},
        "pooled": {name: part["pool"] for name, part in parts.items() if part["pool"] is not None},
        "systems": {
            name: {key: system[key] for key in (*ABOUT, *DIAGNOSED) if key in system}
            for name, system in metrics["systems"].items()
        },
        **tables,
        "differences": {name: part["differences"] for name, part in parts.items()},
        "relative_gains": {
            name: {pair: {m: of[m] for m in DECIDING} for pair, of in part["relative_gains"].items()}
            for name, part in parts.items()
        },
        "p_values": {name: part["p_values"] for name, part in parts.items()},
        "holm": {name: part["holm"] for name, part in parts.items() if "holm" in part},
    }


if __name__ == "__main__":
    report, out = map(Path, sys.argv[1:])
    found = results(json.loads((report / "metrics.json").read_text()))
    write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", out)
