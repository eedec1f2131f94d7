"""All that earlier stages know of a query, one row each: what is preferred is read off it."""

from pathlib import Path
from typing import Any

from aqe.artifact import Slices, read_parquet
from aqe.units import Row, Unit

#: Of a candidate (records.SAMPLES) and of its rank (records.RANKS).
SAMPLE = ["sample_idx", "raw", "expansion", "finish_reason", "token_ids", "stop_at", "num_tokens", "logprob"]
RANK = ["sample_idx", "gold_rank", "score", "ndcg"]


class PreferenceReader:
    """qid, query, `samples` and `ranks` of each query of a unit; one that was not sampled or ranked is left out."""

    def __init__(self, queries: Path, samples: Path, ranks: Path) -> None:
        self._rows = Slices(queries)
        self._stages = {"samples": (samples, SAMPLE), "ranks": (ranks, RANK)}
        self._held: dict[str, tuple[str, dict[str, list[dict[str, Any]]]]] = {}
        """The last file of each stage: units may share one."""

    def __call__(self, unit: Unit) -> list[Row]:
        own = {stage: self._by_query(unit, stage) for stage in self._stages}
        queries = self._rows(unit.start, unit.stop).select(["qid", "text"]).to_pylist()
        return [
            {"qid": query["qid"], "query": query["text"], **{stage: own[stage][query["qid"]] for stage in own}}
            for query in queries
            if all(query["qid"] in own[stage] for stage in own)
        ]

    def _by_query(self, unit: Unit, stage: str) -> dict[str, list[dict[str, Any]]]:
        directory, columns = self._stages[stage]
        rows: dict[str, list[dict[str, Any]]] = {}
        for name in unit.files[stage]:
            if self._held.get(stage, ("",))[0] != name:
                of_file: dict[str, list[dict[str, Any]]] = {}
                for row in read_parquet(directory / name).select(["qid", *columns]).to_pylist():
                    of_file.setdefault(row.pop("qid"), []).append(row)
                self._held[stage] = name, of_file
            rows |= self._held[stage][1]
        return rows
