"""A corpus in BEIR's form with graded judgements, from `aqe run` to a report that Pyserini and ir-measures confirm."""

import json
import random
import subprocess
import sys
from pathlib import Path

import ir_measures
import pytest
import yaml

from tests.test_pipeline import environment, home, only, run
from tests.tools.small_project import write_project

__all__ = ["home"]

#: Pyserini's own run of BM25 as configured, as TREC writes it.
SEARCH = """
import sys
from aqe.index import jvm
jvm.start()
from pyserini.search.lucene import LuceneSearcher
searcher = LuceneSearcher(sys.argv[1])
searcher.set_bm25(0.9, 0.4)
for line in open(sys.argv[2]):
    qid, text = line.rstrip("\\n").split("\\t")
    for rank, hit in enumerate(searcher.search(text, k=100), 1):
        # Its order, ties too: tools break them otherwise.
        print(qid, "Q0", hit.docid, rank, 1000 - rank, "pyserini")
"""


def as_beir(project: Path) -> None:
    """The project's files as BEIR's folder, the test queries with graded judgements, one of them its own passage."""
    draw = random.Random(1)
    (project / "beir" / "qrels").mkdir(parents=True)
    passages = [json.loads(line) for line in (project / "corpus.jsonl").read_text().splitlines()]
    queries = []
    for split in ("train", "dev", "test"):
        lines = ["query-id\tcorpus-id\tscore"]
        for row in map(json.loads, (project / f"{split}.jsonl").read_text().splitlines()):
            queries.append({"_id": row["qid"], "text": row["text"]})
            others = draw.sample([p["docid"] for p in passages if p["docid"] not in row["positives"]], 3)
            lines += [f"{row['qid']}\t{row['positives'][0]}\t2", f"{row['qid']}\t{others[0]}\t1"]
            lines += [f"{row['qid']}\t{others[1]}\t0", f"{row['qid']}\t{others[2]}\t3"]
        (project / "beir" / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    # ArguAna's kind: a passage that is the query itself.
    passages.append({"docid": "test0", "title": "", "text": queries[-10]["text"] * 3})
    rows = [{"_id": p["docid"], "title": p["title"], "text": p["text"], "metadata": {}} for p in passages]
    (project / "beir" / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (project / "beir" / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))


@pytest.mark.slow
def test_beir_with_grades_gives_what_pyserini_and_ir_measures_give(tmp_path: Path, home: Path) -> None:
    write_project(tmp_path)
    as_beir(tmp_path)
    config = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    config["corpus"] = {"format": "beir", "path": "beir"}
    config["queries"] = {
        split: {"format": "beir", "path": "beir", "split": split, "exclude_self": split == "test"}
        for split in ("train", "dev", "test")
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    said = run("run_pipeline", tmp_path, home, "models=[rsft]", "evaluate.systems=[bm25]", "prefer.reward=ndcg", "rank.ndcg_at=10")  # fmt: skip
    assert "corpus: 81 passages" in said and "test: 10 queries" in said
    made = tmp_path / "runs" / "mine"
    found = json.loads((made / "report" / "metrics.json").read_text())["systems"]["bm25"]
    queries = [json.loads(line) for line in (tmp_path / "beir" / "queries.jsonl").read_text().splitlines()]
    asked = [row for row in queries if row["_id"].startswith("test")]
    (tmp_path / "asked.tsv").write_text("".join(f"{row['_id']}\t{row['text']}\n" for row in asked))
    command = [sys.executable, "-c", SEARCH, str(only(made, "build_index") / "lucene"), str(tmp_path / "asked.tsv")]
    out = subprocess.run(command, env=environment(home), check=True, stdout=subprocess.PIPE, text=True).stdout
    hits = [hit for hit in ir_measures.read_trec_run(out) if hit.query_id != hit.doc_id]
    assert len(hits) < len(out.splitlines()), "the query's own passage was found"
    lines = (tmp_path / "beir" / "qrels" / "test.tsv").read_text().splitlines()[1:]
    qrels = [ir_measures.Qrel(q, d, int(r)) for q, d, r in (line.split("\t") for line in lines)]
    measured = ir_measures.calc_aggregate(
        [ir_measures.nDCG @ 10, ir_measures.RR @ 100, ir_measures.Success @ 5], qrels, hits
    )
    for name, measure in {
        "ndcg_10": ir_measures.nDCG @ 10,
        "rr_100": ir_measures.RR @ 100,
        "top_5": ir_measures.Success @ 5,
    }.items():
        assert found[name]["value"] == pytest.approx(measured[measure], abs=1e-6), name
