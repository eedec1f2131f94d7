"""Queries from files: order and limits, what is set aside with its reason, each question in one split."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqe import records
from aqe.config.sources import BeirQueries, FileQueries, LaidOutQueries
from aqe.config.splits import SharesConfig, SplitsConfig
from aqe.corpus import split as splitting
from aqe.corpus import stage
from aqe.corpus.queries import count, read_queries, write_queries
from aqe.errors import DeadLetterError, InputError
from aqe.nodes import Nodes
from aqe.run import Run
from tests.corpus.test_passages import write_lines


def test_queries_take_order_skip_and_limit_of_each_file(tmp_path: Path) -> None:
    for name in "ab":
        lines = [{"qid": f"{name}{i}", "text": f"{name} {i}", "answers": ["x"]} for i in range(20)]
        write_lines(tmp_path / f"{name}.jsonl", *lines, {"qid": f"{name}0", "text": "twice"}, {"qid": "z"})

    def qids(**options: Any) -> list[str]:
        config = FileQueries.model_validate({"format": "jsonl", "path": tmp_path, **options})
        queries, dead = read_queries(config)
        assert queries.schema == records.QUERIES
        assert sorted(dead["reason"].to_pylist()) == ["duplicate qid"] * 2 + ["no text"] * 2
        found: list[str] = queries["qid"].to_pylist()
        return found

    assert qids(order="file", skip=1, limit=2) == ["a1", "a2", "b1", "b2"]
    hashed = qids()
    assert hashed != sorted(hashed) and sorted(hashed[:20]) == sorted(f"a{i}" for i in range(20))
    assert qids(skip=3, limit=4) == hashed[3:7] + hashed[23:27]


def test_queries_without_optional_columns_and_with_wrong_lists(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "q.jsonl",
        {"qid": "1", "text": "a", "answers": None, "positives": ["d"]},
        {"qid": "2", "text": "b"},
        {"qid": 3, "question": "c", "answer": "one answer"},
        {"qid": "4", "text": "d", "answers": [{"a": 1}]},
    )
    queries, dead = read_queries(FileQueries(format="jsonl", path=file, order="file"))
    rows = [(row["qid"], row["answers"], row["positives"], row["relevance"]) for row in queries.to_pylist()]
    assert rows == [("1", [], ["d"], [1]), ("2", [], [], []), ("3", ["one answer"], [], [])]
    assert dead["reason"].to_pylist() == ["a value that is no text: dict is no text"]


def test_an_empty_field_of_csv_names_no_passage(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text('qid,text,answers,positives\n1,a,"[""leaves"", """"]",\n2,b,,d2\n')
    queries, _ = read_queries(FileQueries(format="csv", path=file, order="file"))
    assert [(row["answers"], row["positives"]) for row in queries.to_pylist()] == [(["leaves"], []), ([], ["d2"])]


def test_datasets_are_dealt_out_in_turn_and_a_question_belongs_to_the_first(tmp_path: Path) -> None:
    rows = {
        "large": [{"qid": f"l{i}", "text": f"large {i}"} for i in range(5)],
        "small.test": [{"qid": f"s{i}", "text": f"Large {i}?"} for i in range(2)] + [{"qid": "s2", "text": "large 9"}],
    }
    for name, lines in rows.items():
        write_lines(tmp_path / f"{name}.jsonl", *lines)
    for split in ("train", "dev"):
        write_lines(tmp_path / f"{split}.jsonl", {"qid": split, "text": split})

    def of(*names: str) -> FileQueries:
        return FileQueries(format="jsonl", path=tuple(tmp_path / f"{name}.jsonl" for name in names), order="file")

    both = of("small.test", "large")
    queries, _ = read_queries(both)
    assert queries["qid"].to_pylist() == ["s0", "l0", "s1", "l1", "s2", "l2", "l3", "l4"]
    splits = SplitsConfig(train=of("train"), dev=of("dev"), test=both)
    assert splits.datasets("test") == ("small.test", "large")
    stats = write_queries(tmp_path / "out", splits)
    kept = pq.read_table(tmp_path / "out" / "test.parquet")
    assert kept["qid"].to_pylist() == ["s0", "s1", "s2", "l2", "l3", "l4"]
    assert set(kept["dataset"].to_pylist()) == {"small.test", "large"}
    letters = pq.read_table(tmp_path / "out" / "dead_letters.parquet").to_pylist()
    assert [(one["place"], one["reason"]) for one in letters] == [
        ("l0", "small.test asks the same"),
        ("l1", "small.test asks the same"),
    ]
    assert stats["shared"] == 2
    # In the other order the questions are the other one's.
    other = splits.model_copy(update={"test": of("large", "small.test")})
    write_queries(tmp_path / "other", other)
    kept = pq.read_table(tmp_path / "other" / "test.parquet")
    assert kept["qid"].to_pylist() == ["l0", "l1", "l2", "s2", "l3", "l4"]


def test_write_queries_keeps_splits_apart(tmp_path: Path) -> None:
    splits = {
        "train": [("a", "Who is A?"), ("b", "who is  b"), ("t1", "x"), ("c", "kept")],
        "dev": [("d1", "who is B ?"), ("t2", "kept in test only")],
        "test": [("t1", "who is a"), ("t2", "z")],
    }
    for name, rows in splits.items():
        write_lines(tmp_path / f"{name}.jsonl", *({"qid": q, "text": t} for q, t in rows))
    config = SplitsConfig.model_validate(
        {name: {"format": "jsonl", "path": tmp_path / f"{name}.jsonl"} for name in splits}
    )
    stats = write_queries(tmp_path / "out", config)
    left = {name: pq.read_table(tmp_path / "out" / f"{name}.parquet")["qid"].to_pylist() for name in splits}
    assert {name: sorted(qids) for name, qids in left.items()} == {"train": ["c"], "dev": ["d1"], "test": ["t1", "t2"]}
    assert stats == {"train": 1, "dev": 1, "test": 2, "shared": 4, "dead": 4, "judgements": 0}
    letters = pq.read_table(tmp_path / "out" / "dead_letters.parquet").to_pylist()
    assert sorted((one["stage"], one["place"], one["reason"]) for one in letters) == [
        ("queries.dev", "t2", "stands in test too"),
        ("queries.train", "a", "stands in test too"),
        ("queries.train", "b", "stands in dev too"),
        ("queries.train", "t1", "stands in test too"),
    ]


def test_several_sources_and_questions_that_are_left_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", *({"qid": f"a{i}", "text": f"question {i}?"} for i in range(6)))
    write_lines(tmp_path / "b.jsonl", *({"qid": f"b{i}", "text": f"Question {i}"} for i in (1, 3)))
    write_lines(tmp_path / "c.jsonl", {"qid": "c", "text": "another"}, {"qid": "a0", "text": "a qid of the first"})
    first = FileQueries(
        format="jsonl", path=tmp_path / "a.jsonl", without=(tmp_path / "b.jsonl",), order="file", limit=3
    )
    second = FileQueries(format="jsonl", path=(tmp_path / "c.jsonl",), order="file")
    queries, dead = read_queries(first, second)
    assert queries["qid"].to_pylist() == ["a0", "c", "a2", "a4"]
    assert queries["dataset"].to_pylist() == ["a", "c", "a", "a"]
    (letter,) = dead.to_pylist()
    assert letter["place"].endswith("c.jsonl:2") and letter["reason"] == "duplicate qid"
    splits = SplitsConfig(train=(first, second), dev=second, test=second)
    assert splits.datasets("train") == ("a", "c") and splits.datasets("dev") == ("c",)


def test_what_is_left_out_needs_no_ids_and_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("nq", "trivia"):
        (tmp_path / folder).mkdir()
        rows = [{"qid": f"{folder}{i}", "text": f"{folder} question {i}"} for i in range(4)]
        write_lines(tmp_path / folder / "queries.jsonl", *rows, {"qid": f"{folder}-same", "text": "asked by both"})
        write_lines(
            tmp_path / folder / "out.jsonl", *({"qid": str(i), "text": f"{folder} question {i}"} for i in (1, 2))
        )
    both = FileQueries(
        format="jsonl",
        path=tuple(tmp_path / folder / "queries.jsonl" for folder in ("nq", "trivia")),
        without=tuple(tmp_path / folder / "out.jsonl" for folder in ("nq", "trivia")),
        order="file",
    )
    queries, _ = read_queries(both)
    assert queries["qid"].to_pylist() == ["nq0", "trivia0", "nq3", "trivia3", "nq-same", "trivia-same"]
    assert set(queries["dataset"].to_pylist()) == {"nq/queries", "trivia/queries"}
    write_lines(tmp_path / "other.jsonl", {"qid": "o", "text": "other"})
    write_lines(tmp_path / "dev.jsonl", {"qid": "v", "text": "dev"})
    one, dev = (FileQueries(format="jsonl", path=tmp_path / name) for name in ("other.jsonl", "dev.jsonl"))
    splits = SplitsConfig(train=one, dev=dev, test=both)
    assert splits.datasets("test") == ("nq/queries", "trivia/queries")
    assert write_queries(tmp_path / "out", splits)["shared"] == 1


def test_a_file_may_be_named_for_each_part_of_it_that_is_taken(tmp_path: Path) -> None:
    write_lines(tmp_path / "queries.jsonl", *({"_id": f"q{i}", "text": f"text {i}"} for i in range(6)))
    (tmp_path / "qrels").mkdir()
    for split, numbers in {"train": (0, 1, 2), "dev": (2, 3)}.items():
        lines = "".join(f"q{i}\td{i}\t1\n" for i in numbers)
        (tmp_path / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    beir = [BeirQueries(format="beir", path=tmp_path, split=split, order="file") for split in ("train", "dev")]
    queries, dead = read_queries(*beir)
    assert sorted(queries["qid"].to_pylist()) == ["q0", "q1", "q2", "q3"]
    (letter,) = dead.to_pylist()
    assert letter["reason"] == "duplicate qid" and letter["place"].endswith("queries.jsonl:3")

    file = FileQueries(format="jsonl", path=tmp_path / "queries.jsonl")
    halves = [file.model_copy(update={"limit": 2}), file.model_copy(update={"skip": 2})]
    queries, dead = read_queries(*halves)
    assert queries.num_rows == 6 and dead.num_rows == 0


def test_questions_without_ids_have_their_own_in_every_split(tmp_path: Path) -> None:
    for folder in ("train", "dev", "test", "more"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nq.csv").write_text("".join(f"{folder} question {i}\t['x']\n" for i in range(3)))

    def of(*folders: str) -> LaidOutQueries:
        return LaidOutQueries(format="dpr", path=tuple(tmp_path / folder / "nq.csv" for folder in folders))

    splits = SplitsConfig(train=of("train", "more"), dev=of("dev"), test=of("test"))
    stats = write_queries(tmp_path / "out", splits)
    assert stats == {"train": 6, "dev": 3, "test": 3, "shared": 0, "dead": 0, "judgements": 0}
    test = pq.read_table(tmp_path / "out" / "test.parquet")
    assert sorted(test["qid"].to_pylist()) == ["test/nq-0", "test/nq-1", "test/nq-2"]
    assert set(test["dataset"].to_pylist()) == {"nq"}


def test_train_and_test_the_same_file_is_refused(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "q.jsonl", *({"qid": str(i), "text": f"question {i}"} for i in range(5)))
    dev = write_lines(tmp_path / "dev.jsonl", {"qid": "d", "text": "dev"})
    same, other = (FileQueries(format="jsonl", path=path) for path in (file, dev))
    with pytest.raises(InputError, match=r"queries\.train: no query is left of 5; 5 stands in test too"):
        write_queries(tmp_path / "out", SplitsConfig(train=same, dev=other, test=same))


def test_judgements_of_their_own(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "q.jsonl", *({"qid": q, "text": q, "positives": ["x"]} for q in ("a", "b", "c")))
    (tmp_path / "qrels.txt").write_text("a 0 d1 2\na 0 d2 0\nb 0 d1 1.0\nb 0 d1 2\nb 0 d3 half\nc 0 c 1\nc d 1\n")
    config = FileQueries.model_validate(
        {
            "format": "jsonl",
            "path": file,
            "order": "file",
            "exclude_self": True,
            "qrels": {"format": "trec", "path": tmp_path / "qrels.txt"},
        }
    )
    queries, dead = read_queries(config, stage="queries.test")
    found = {row["qid"]: dict(zip(row["positives"], row["relevance"], strict=True)) for row in queries.to_pylist()}
    # The passage that is the query itself is none of its relevant ones.
    assert found == {"a": {"d1": 2, "d2": 0}, "b": {"d1": 1}, "c": {}}
    assert [(one["stage"], one["place"].rpartition(":")[2], one["reason"]) for one in dead.to_pylist()] == [
        ("queries.test.qrels", "4", "a passage judged twice for a query"),
        ("queries.test.qrels", "5", "a relevance that is no whole number"),
        ("queries.test.qrels", "7", "not `qid 0 docid relevance`"),
    ]


def test_judgements_of_their_own_decide_alone(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "q.jsonl", *({"qid": q, "text": q, "answers": ["x"]} for q in "ab"))
    (tmp_path / "qrels.txt").write_text("a 0 d1 1\n")
    source = {"format": "jsonl", "path": file, "order": "file"}
    qrels = {"format": "trec", "path": tmp_path / "qrels.txt"}
    queries, _ = read_queries(FileQueries.model_validate({**source, "qrels": qrels}))
    assert [(row["positives"], row["answers"]) for row in queries.to_pylist()] == [(["d1"], ["x"]), ([], [])]
    queries, _ = read_queries(FileQueries.model_validate(source))
    assert queries["answers"].to_pylist() == [["x"], ["x"]]


def test_judgements_that_no_file_of_ours_can_hold_are_set_aside(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "q.jsonl", {"qid": "q", "text": "t"})
    lines = [{"docid": "a", "relevance": 10**12}, {"docid": "\ud800", "relevance": 1}, {"docid": "b", "relevance": 1}]
    write_lines(tmp_path / "qrels.jsonl", *({"qid": "q", **line} for line in lines))
    qrels = {"format": "jsonl", "path": tmp_path / "qrels.jsonl"}
    queries, dead = read_queries(FileQueries.model_validate({"format": "jsonl", "path": file, "qrels": qrels}))
    assert queries["positives"].to_pylist() == [["b"]]
    assert dead["reason"].to_pylist() == [
        "a relevance that is no whole number",
        "half a surrogate pair, which is not Unicode",
    ]


def test_dead_judgements_are_a_share_of_judgements(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        write_lines(tmp_path / f"{split}.jsonl", *({"qid": f"{split}{i}", "text": f"{split} {i}"} for i in range(5)))
    judged = [f"test{i % 5} 0 d{i} 1\n" for i in range(300)]
    (tmp_path / "qrels.txt").write_text("".join([*judged, "test0 0 d0 1\n"]))
    source = {split: {"format": "jsonl", "path": tmp_path / f"{split}.jsonl"} for split in ("train", "dev", "test")}
    source["test"]["qrels"] = {"format": "trec", "path": tmp_path / "qrels.txt"}
    run = Run(tmp_path / "runs", lambda line: None, nodes=lambda kind: Nodes((1,), 0, {}, False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "on_node", lambda nodes, function, *args: function(*args))
        made = stage.ingest_queries(run, SplitsConfig.model_validate(source))
        assert (made.stats["dead"], made.stats["judgements"]) == (1, 300)
        (tmp_path / "qrels.txt").write_text("".join([*judged, *(["test0 d0 1\n"] * 9)]))
        with pytest.raises(DeadLetterError, match=r"queries\.qrels: 9 of 309 rows"):
            stage.ingest_queries(run, SplitsConfig.model_validate(source))
        # Good judgements are no good queries.
        (tmp_path / "qrels.txt").write_text("".join(judged))
        write_lines(tmp_path / "dev.jsonl", {"qid": "d", "text": "t"}, "{broken")
        with pytest.raises(DeadLetterError, match=r"queries: 1 of 12 rows"):
            stage.ingest_queries(run, SplitsConfig.model_validate(source))


def test_a_count_reads_no_more_than_it_must(tmp_path: Path) -> None:
    for name in "ab":
        write_lines(tmp_path / f"{name}.jsonl", *({"qid": f"{name}{i}", "text": "t"} for i in range(9)))
    config = FileQueries.model_validate({"format": "jsonl", "path": tmp_path, "skip": 2, "limit": 5})
    assert count(config) == 10
    assert count(config.model_copy(update={"skip": 7})) == 4


SHARES = SharesConfig(train=0.5, dev=0.25, test=0.25)


def test_a_rule_deals_out_one_file(tmp_path: Path) -> None:
    rows = [{"qid": str(i), "text": f"a question about thing {i} and its other side number {i}"} for i in range(200)]
    rows.append({"qid": "near", "text": "a question about the thing 7 and its other side number 7"})
    rows.append({"qid": "same", "text": "A question about thing 7 and its other side number 7?"})
    config = SplitsConfig.model_validate(
        {"all": {"format": "jsonl", "path": write_lines(tmp_path / "all.jsonl", *rows)}, "split": SHARES.model_dump()}
    )
    stats = write_queries(tmp_path / "out", config)
    of = {
        qid: name
        for name in ("train", "dev", "test")
        for qid in pq.read_table(tmp_path / "out" / f"{name}.parquet")["qid"].to_pylist()
    }
    assert len(of) == 202 and stats["shared"] == stats["dead"] == 0
    assert of["7"] == of["near"] == of["same"]
    assert 70 < stats["train"] < 130 and stats["dev"] > 25 and stats["test"] > 25
    # Others, that say something else, change nothing for a query.
    few = SplitsConfig.model_validate(
        {
            "all": {"format": "jsonl", "path": write_lines(tmp_path / "few.jsonl", *rows[8:50])},
            "split": SHARES.model_dump(),
        }
    )
    write_queries(tmp_path / "few", few)
    for name in ("train", "dev", "test"):
        assert {of[q] for q in pq.read_table(tmp_path / "few" / f"{name}.parquet")["qid"].to_pylist()} == {name}


_question = st.lists(st.sampled_from([f"w{i}" for i in range(9)]), max_size=14).map(" ".join)


@given(st.lists(_question, max_size=12))
def test_near_duplicates_are_those_of_brute_force(texts: list[str]) -> None:
    words = [frozenset(text.split()) or frozenset([text]) for text in texts]
    group = list(range(len(texts)))
    for i, a in enumerate(words):
        for j, b in enumerate(words[:i]):
            if len(a & b) >= splitting.NEAR * len(a | b):
                group = [group[j] if of == group[i] else of for of in group]
    found = splitting.near_duplicates(texts)
    for i in range(len(texts)):
        for j in range(i):
            assert (found[i] == found[j]) == (group[i] == group[j])


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ({"train": 1}, "dev, test is missing"),
        ({"all": 1}, "needs `queries.split`"),
        ({"all": 1, "train": 1, "split": {}}, "name one or the other"),
        ({"train": 1, "dev": 1, "test": 1, "split": {}}, "`queries.all`, which is missing"),
        ({"all": 1, "split": {"train": 0.5}}, "add up to 1"),
    ],
)
def test_splits_that_do_not_fit_are_told(queries: dict[str, Any], message: str) -> None:
    source = {"format": "jsonl", "path": "q.jsonl"}
    given_ = {name: source if value == 1 else value for name, value in queries.items()}
    with pytest.raises(ValueError, match=message):
        SplitsConfig.model_validate(given_)
