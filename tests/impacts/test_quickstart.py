"""Both engines on the quickstart: every candidate of every training query, docid, rank and score."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ROOT / "runs" / "quickstart"

#: Java in a process of its own: the pytest process never starts one.
WORKER = """
import json, sys
from pathlib import Path
from aqe.config.data import IndexConfig
from aqe.config.rank import RankConfig
from aqe.artifact import Slices, load
from aqe.rank.retriever import Retriever
from aqe.rank.workers import QueryReader, RankWorker
from aqe.units import cut, with_files
run, ranked = Path(sys.argv[1]), Path(sys.argv[2])
def manifest(directory):
    return json.loads((directory / "manifest.json").read_text())
def parent(directory, stage):
    return next(run / name for name in manifest(directory)["parents"] if name.startswith(stage))
settings = manifest(ranked)["config"]
samples = parent(ranked, "sample_train")
impacts = parent(ranked, "build_impacts")
judged = parent(ranked, "judge_queries")
total = len(Slices(judged / "queries.parquet"))
(unit,) = with_files(cut(total, total), "expansions", load(samples))
rows = QueryReader(judged / "queries.parquet", samples / "data")(unit)
index_config = IndexConfig(k1=settings["k1"], b=settings["b"])
def ranks(engine, index):
    config = RankConfig(
        engine=engine, query_weight=settings["query_weight"], distinct_words=settings["distinct_words"]
    )
    result = RankWorker(Retriever(load(index), config, index_config).source({}).open(), config, "test")(rows)
    assert not result.dead, result.dead[:3]
    return result.data.to_pylist()
ours, theirs = ranks("impacts", impacts), ranks("lucene", parent(impacts, "build_index"))
differ = [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]]
print(json.dumps({"compared": len(ours), "differ": differ[:5]}))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_quickstarts_ranks_are_lucenes() -> None:
    found = sorted(RUN.glob("rank_train-*/manifest.json"), key=lambda path: path.stat().st_mtime)
    found = [path for path in found if json.loads(path.read_text())["config"]["engine"] == "impacts"]
    if not found:
        pytest.skip("needs the candidates of `make quickstart` below runs/")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    command = [sys.executable, "-c", WORKER, str(RUN), str(found[-1].parent)]
    done = subprocess.run(command, check=True, env=env, stdout=subprocess.PIPE, text=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["compared"] > 10_000
    assert answer["differ"] == []
