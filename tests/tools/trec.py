"""What other programs read in our run and qrels files."""

from collections.abc import Iterable
from pathlib import Path

import ir_measures


def read_run_measures(run: Path, qrels: Path, measures: Iterable[str]) -> dict[str, dict[str, float]]:
    """Measures (`Success@1`, `RR@100`, `nDCG@10`) of a run file as ir-measures reads it: measure -> qid -> value."""
    parsed = [ir_measures.parse_measure(name) for name in measures]
    out: dict[str, dict[str, float]] = {str(m): {} for m in parsed}
    judged = list(ir_measures.read_trec_qrels(str(qrels)))
    for metric in ir_measures.iter_calc(parsed, judged, ir_measures.read_trec_run(str(run))):
        out[str(metric.measure)][metric.query_id] = float(metric.value)
    return out
