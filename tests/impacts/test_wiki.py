"""Both engines on 424,643 Wikipedia passages: the same ranks and scores, text for text."""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

WIKI = Path(__file__).parents[3] / "shared" / "data" / "wiki"
PAIRS = 2_000

#: Java in a process of its own: the pytest process never starts one.
WORKER = """
import json, sys
from pathlib import Path
from aqe.config.data import IndexConfig
from aqe.index.convert import build_impacts
from aqe.index.lucene import build_index
from aqe.impacts.gold import open_gold_ranker
from aqe.rank.lucene import LuceneRanker
out = Path(sys.argv[1])
build_index(out, out / "data", IndexConfig(), print)
build_impacts(out / "impacts", out / "lucene", IndexConfig(), print)
tasks = json.loads((out / "tasks.json").read_text())
rankers = LuceneRanker(out / "lucene", IndexConfig()), open_gold_ranker(out / "impacts", IndexConfig())
answers = [[[[g.docid, g.rank, g.score] for g in ranker.gold_ranks(*task)] for task in tasks] for ranker in rankers]
(out / "answers.json").write_text(json.dumps(answers))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ranks_are_lucenes_on_wikipedia(tmp_path: Path) -> None:
    """Questions with spans of passages as candidates: near the question's subject, or about something else."""
    if not WIKI.exists():
        pytest.skip("needs ../shared/data/wiki")
    draw = random.Random(0)
    texts = dict(
        zip(*(pq.read_table(WIKI / "corpus.parquet")[name].to_pylist() for name in ("docid", "text")), strict=True)
    )
    everything = list(texts.values())
    with gzip.open(WIKI / "squad.train.jsonl.gz", "rt") as lines:
        questions = [json.loads(line) for line in lines]
    tasks = []
    for question in draw.sample(questions, PAIRS // 16):
        sources = [texts[question["positives"][0]]] * 4 + draw.sample(everything, 12)
        spans = [source.split()[at : at + 16] for source in sources for at in [draw.randrange(60)]]
        asked = f"{question['text']} " * draw.choice([1, 1, 3])
        tasks.append(([question["text"], *(asked + " ".join(span) for span in spans)], question["positives"]))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.parquet").symlink_to(WIKI / "corpus.parquet")
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "platform")}
    subprocess.run([sys.executable, "-c", WORKER, str(tmp_path)], check=True, env=env)
    lucene, impacts = json.loads((tmp_path / "answers.json").read_text())
    assert sum(map(len, lucene)) >= PAIRS
    assert impacts == lucene
    assert max(rank for answer in lucene for _, rank, _ in answer) > 1000
