"""docs/formats.md as it stands: its files and its YAML are read, and give what the page says."""

import gzip
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import TypeAdapter

from aqe.config.sources import CorpusConfig, QueriesConfig
from aqe.config.splits import SharesConfig, SplitsConfig
from aqe.corpus import formats
from aqe.corpus.anserini import fetched
from aqe.corpus.passages import read_corpus
from aqe.corpus.queries import count, read_queries
from aqe.errors import InputError

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
CORPUS: TypeAdapter[Any] = TypeAdapter(CorpusConfig)
QUERIES: TypeAdapter[Any] = TypeAdapter(QueriesConfig)
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE))
TEA = ("d1", "Tea", "leaves steeped in hot water")


def write_files(section: str, where: Path) -> None:
    """The files that a section shows."""
    for name, text in re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE):
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(text)


def configured(section: str) -> dict[str, Any]:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)
    config: dict[str, Any] = yaml.safe_load(text)
    return config


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    write_files("JSON lines", tmp_path)
    yield tmp_path


def passages_of(config: Any) -> list[tuple[str, str, str]]:
    dead: list[dict[str, str]] = []
    rows = [row for table in read_corpus(CORPUS.validate_python(config), dead) for row in table.to_pylist()]
    assert not dead
    return [(row["docid"], row["title"], row["text"]) for row in rows]


def queries_of(config: Any) -> list[dict[str, Any]]:
    queries, dead = read_queries(QUERIES.validate_python({"order": "file", **config}))
    assert dead.num_rows == 0
    rows: list[dict[str, Any]] = queries.to_pylist()
    return rows


def judged(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    return {row["qid"]: dict(zip(row["positives"], row["relevance"], strict=True)) for row in rows}


def test_every_section_is_tried() -> None:
    tried = set(re.findall(r'configured\("(.+?)"\)', Path(__file__).read_text()))
    assert tried == set(SECTIONS)


def test_json_lines(here: Path) -> None:
    config = configured("JSON lines")
    assert passages_of(config["corpus"])[0] == TEA
    first, second = queries_of(config["queries"]["train"])
    assert first == {
        "qid": "q1",
        "text": "drink from beans",
        "answers": [],
        "positives": ["d2"],
        "relevance": [1],
        "match": "dpr",
        "excluded": [],
        "dataset": "train",
    }
    assert second["answers"] == ["leaves"]


def test_csv_and_tsv(here: Path) -> None:
    write_files("CSV and TSV", here)
    config = configured("CSV and TSV")
    assert passages_of(config["corpus"]) == [
        ("1", "Tea", 'leaves, steeped in "hot" water'),
        ("2", "Coffee", "roasted beans"),
    ]
    assert judged(queries_of(config["queries"]["train"])) == {"q1": {"2": 1}, "q2": {"1": 1}}


def test_parquet(here: Path) -> None:
    config = configured("Parquet")
    (here / "passages").mkdir()
    for i in range(2):
        data = pa.table(
            {"key": pa.array([10 * i, 10 * i + 1], pa.int16()), "body": ["one", "two"], "title": [None, "T"]}
        )
        pq.write_table(data, here / "passages" / f"{i}.parquet")
    assert passages_of(config["corpus"])[1:3] == [("1", "T", "two"), ("10", "", "one")]
    questions = pa.table({"id": [1.0, 2.0], "question": ["a", "b"], "answer": ["x", "y"]})
    pq.write_table(questions, here / "questions.parquet")
    rows = queries_of(config["queries"]["train"])
    assert [(row["qid"], row["answers"]) for row in rows] == [("1", ["x"]), ("2", ["y"])]


def test_judgements(here: Path) -> None:
    write_files("Judgements", here)
    splits = configured("Judgements")["queries"]
    assert judged(queries_of(splits["train"])) == {"q1": {"d2": 2, "d1": 0}, "q2": {}}
    assert judged(queries_of(splits["test"])) == {"q1": {}, "q2": {"d1": 3, "d2": -1}}
    alone = queries_of({**splits["train"], "exclude_self": True})
    assert [row["excluded"] for row in alone] == [["q1"], ["q2"]]


def test_answers(here: Path) -> None:
    config = configured("Answers")
    assert {row["match"] for row in queries_of(config["queries"]["train"])} == {"substring"}


@pytest.mark.parametrize("zipped", [False, True])
def test_beir(here: Path, zipped: bool) -> None:
    write_files("BEIR", here)
    config = configured("BEIR")
    corpus, test = config["corpus"], config["queries"]["test"]
    if zipped:
        with zipfile.ZipFile(here / "scifact.zip", "w") as archive:
            for file in sorted((here / "scifact").rglob("*.*")):
                archive.write(file, file.relative_to(here))
        corpus, test = ({**one, "path": "scifact.zip"} for one in (corpus, test))
    assert passages_of(corpus)[0] == TEA
    rows = queries_of(test)
    assert judged(rows) == {"q1": {"d2": 2}} and rows[0]["dataset"] == "scifact"
    if not zipped:
        # What is not read of it does not change what it is: no index is built anew for a further split.
        before = formats.passages(CORPUS.validate_python(corpus)).identity
        (here / "scifact" / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td1\t1\n")
        assert formats.passages(CORPUS.validate_python(corpus)).identity == before
        (here / "scifact" / "qrels" / "dev.tsv").unlink()
    with pytest.raises(InputError, match=r"qrels/train\.tsv" + ("" if zipped else ".*Its qrels are of test")):
        queries_of({**test, "split": "train"})


def test_dpr(here: Path) -> None:
    write_files("DPR", here)
    config = configured("DPR")
    assert passages_of(config["corpus"]) == [
        ("1", "A quarrel", 'He said "no" and left the hall.'),
        ("2", "The mill", "The river bends twice before the mill."),
    ]
    (row,) = queries_of(config["queries"]["train"])
    assert (row["qid"], row["positives"], row["answers"]) == ("nq-train-0", ["2"], ["before the mill"])
    rows = queries_of(config["queries"]["test"])
    assert [(row["qid"], row["answers"]) for row in rows] == [
        ("nq-test.qa-0", ["he", "the man"]),
        ("nq-test.qa-1", ["before the mill"]),
    ]
    (here / "nq-train.json").write_text('[{"question": "a", "answers": ["b"]}, {"quest')
    with pytest.raises(InputError, match="wrong after question 1"):
        queries_of(config["queries"]["train"])


def test_ms_marco(here: Path) -> None:
    write_files("MS MARCO", here)
    config = configured("MS MARCO")
    assert passages_of(config["corpus"])[1] == ("1", "", 'The "Manhattan Project" and its atomic bomb')
    assert judged(queries_of(config["queries"]["train"])) == {"121352": {"1": 1}, "634306": {"0": 1}}


def test_trec(here: Path) -> None:
    write_files("TREC", here)
    test = configured("TREC")["queries"]["test"]
    (row,) = queries_of(test)
    assert (row["qid"], row["text"]) == ("301", "river mill") and judged([row]) == {"301": {"2": 2, "1": 0}}
    assert queries_of({**test, "field": "description"})[0]["text"] == "Where does the river bend?"
    for text in (
        '<topics><topic number="301"><query>river &amp; mill</query><question>Where?</question></topic></topics>',
        "301:river & mill\n",
        "301\triver & mill\r\n",
        "<top>\n<num> 301 </num>\n<title>river &amp;\n mill</title>\n</top>",
    ):
        (here / "topics.txt").write_text(text)
        assert [(row["qid"], row["text"]) for row in queries_of(test)] == [("301", "river & mill")], text
    # No line ends there but for Python.
    (here / "topics.txt").write_text("301:river\u2028mill\n")
    assert queries_of(test)[0]["text"] == "river\u2028mill"
    (here / "topics.txt.gz").write_bytes(gzip.compress(b"<top><num>301<title>river</top>")[:-9])
    with pytest.raises(InputError, match=r"topics\.txt\.gz cannot be read as trec"):
        queries_of({**test, "path": "topics.txt.gz"})
    (here / "topics.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"holds no topic|can be read"):
        queries_of(test)


def test_ir_datasets(here: Path) -> None:
    """The ids of the page need a network; a dataset that is made on the spot takes their place."""
    import ir_datasets  # type: ignore[import-untyped]
    from ir_datasets.datasets.base import Dataset  # type: ignore[import-untyped]
    from ir_datasets.formats import TrecQrels, TsvDocs, TsvQueries  # type: ignore[import-untyped]
    from ir_datasets.util import LocalDownload  # type: ignore[import-untyped]

    config = configured("ir_datasets")
    (here / "docs.tsv").write_text("d1\tleaves in water\nd2\troasted beans\n")
    (here / "queries.tsv").write_text("q1\tdrink from beans\nq2\tof another split\n")
    (here / "qrels.txt").write_text("q1 0 d2 2\nq1 0 d1 0\n")
    docs, queries, qrels = (LocalDownload(here / name) for name in ("docs.tsv", "queries.tsv", "qrels.txt"))
    ids = [config["corpus"]["id"], *(source["id"] for source in config["queries"].values())]
    assert ids == ["beir/scifact", "beir/scifact/train", "beir/scifact/test"]
    made = Dataset(TsvDocs(docs), TsvQueries(queries), TrecQrels(qrels, {}))
    if "aqe-test" not in ir_datasets.registry:
        ir_datasets.registry.register("aqe-test", made)
    assert passages_of({"format": "ir_datasets", "id": "aqe-test"})[1] == ("d2", "", "roasted beans")
    rows = queries_of({"format": "ir_datasets", "id": "aqe-test"})
    assert judged(rows) == {"q1": {"d2": 2, "d1": 0}} and rows[0]["dataset"] == "aqe-test"
    with pytest.raises(InputError, match="no dataset 'aqe-tset'"):
        passages_of({"format": "ir_datasets", "id": "aqe-tset"})


def test_hugging_face(here: Path) -> None:
    """The ids of the page need a network; saved datasets take their place."""
    import datasets

    config = configured("Hugging Face")
    CORPUS.validate_python(config["corpus"])
    QUERIES.validate_python(config["queries"]["test"])
    corpus = datasets.Dataset.from_dict({"_id": ["d1", "d2"], "title": ["Tea", ""], "text": ["leaves", "beans"]})
    corpus.save_to_disk(str(here / "corpus"))
    queries = datasets.Dataset.from_dict({"_id": ["q1"], "text": ["drink"], "a": [{"text": ["x"], "start": [1]}]})
    datasets.DatasetDict({"test": queries}).save_to_disk(str(here / "queries"))
    qrels = datasets.Dataset.from_dict({"query-id": ["q1"], "corpus-id": ["d2"], "score": [2]})
    qrels.save_to_disk(str(here / "qrels"))
    assert passages_of({"format": "huggingface", "id": str(here / "corpus")}) == [
        ("d1", "Tea", "leaves"),
        ("d2", "", "beans"),
    ]
    saved = {"format": "huggingface", "id": str(here / "queries"), "split": "test", "columns": {"answers": "a.text"}}
    assert count(QUERIES.validate_python(saved)) == 1
    (row,) = queries_of({**saved, "qrels": {"format": "huggingface", "id": str(here / "qrels")}})
    assert judged([row]) == {"q1": {"d2": 2}} and row["answers"] == ["x"]
    with pytest.raises(InputError, match="has the splits test, not 'train'"):
        queries_of({**saved, "split": "train"})
    (here / "script").mkdir()
    (here / "script" / "script.py").write_text("")
    (here / "broken").mkdir()
    (here / "broken" / "train.jsonl").write_text('{"_id": 1}\n{not json\n')
    for name in ("script", "broken"):
        with pytest.raises(InputError, match=f"{name}' .split 'train'. cannot be loaded"):
            passages_of({"format": "huggingface", "id": str(here / name)})


def test_an_anserini_index(here: Path) -> None:
    config = configured("An Anserini index")
    assert CORPUS.validate_python(config["corpus"]).path == Path("indexes/mine")
    # The driver fetches it, and must get no JVM of it.
    before = "jnius" in sys.modules
    with pytest.raises(InputError, match="Pyserini cannot get the index 'no-such-index': Unrecognized index name"):
        fetched("no-such-index")
    assert ("jnius" in sys.modules) == before


def test_one_file_split_by_rule(here: Path) -> None:
    write_files("One file, split by rule", here)
    splits = SplitsConfig.model_validate(configured("One file, split by rule")["queries"])
    assert splits.datasets("test") == ("all",)


def test_no_judgements(here: Path) -> None:
    config = configured("No judgements")
    splits = SplitsConfig.model_validate(config["queries"])
    assert passages_of(config["corpus"])[0] == TEA
    assert splits.asked["all"].number == 2000 and splits.split == SharesConfig()
    (example,) = re.findall(r"^```yaml own tests\n(.*?)^```", SECTIONS["No judgements"], re.DOTALL | re.MULTILINE)
    splits = SplitsConfig.model_validate(yaml.safe_load(example)["queries"])
    assert {key: source.number for key, source in splits.asked.items()} == {"train": 2000, "dev": 200}
    assert splits.datasets("test") == ("test",)
