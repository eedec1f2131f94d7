"""Any passage that reading lets through is indexed, in every language; and what an index is told by."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from aqe import records
from tests.tools.small_project import ROOT

ODD = {
    "long token": "x" * 40_000,
    "long tokens": " ".join(["ab" * 20_000, "ß" * 17_000, "北" * 40_000]),
    "long text": "one word after another " * 10_000,
    "controls": "\x00\x01 a \x1f\x7f b",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈",
    "marks": "!?…—",
    "every script": "Москва 東京 서울 北京 กรุงเทพ القاهرة दिल्ली ঢাকা Αθήνα",
    "\x01docid\x1f with controls": "a docid that Java would trim",
    " blanks ": "around a docid",
    "only a title": "",
}
SCRIPT = """
import json, sys
from pathlib import Path
from aqe.config.data import IndexConfig
from aqe.errors import ConfigError
from aqe.index import jvm
from aqe.index.lucene import build_index, check_language, passages_of
out = Path(sys.argv[1])
docids = json.loads(sys.argv[2])
jvm.start("1g")
names = jvm.start()("io.anserini.analysis.AnalyzerMap").analyzerMap
made = {}
for language in ["en", *(str(key) for key in names.keySet().toArray())]:
    try:
        check_language(language, "1g")
    except ConfigError as error:
        made[language] = str(error)
        continue
    build_index(out / language, out / "data", IndexConfig(language=language, threads=1), lambda line: None)
    made[language] = passages_of(out / language / "lucene", "1g", docids)
    assert passages_of(out / language / "lucene", "1g", ["nowhere", *docids])[1] == "nowhere"
print(json.dumps(made))
"""


def test_odd_passages_in_every_language(tmp_path: Path) -> None:
    rows = [{"docid": docid, "title": "A title", "text": text} for docid, text in ODD.items()]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, records.CORPUS), tmp_path / "data" / "0.parquet")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(list(ODD))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    made = json.loads(done.stdout.splitlines()[-1])
    assert len(made) > 20 and "en" in made
    told = {language: said for language, said in made.items() if isinstance(said, str)}
    assert set(told) == {"th"} and "does not work with this Java" in told["th"]
    for language in made.keys() - told.keys():
        assert made[language] == [len(ODD), None], language
