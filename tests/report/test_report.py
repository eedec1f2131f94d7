"""metrics.json, the examples and the report."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aqe import records
from aqe.config.evaluate import EvaluateConfig
from aqe.errors import InputError
from aqe.evaluate.compare import ORDER, PAIRS, System, best_model, evaluate, main_model
from aqe.evaluate.measures import MEASURES
from aqe.evaluate.significance import holm
from aqe.report.console import console_examples, console_table
from aqe.report.examples import pick_examples
from aqe.report.page import ReportContext, number, write_report
from aqe.report.results import results

NASTY = "a <script>alert('x')</script> | *pipe* & `code`?"
CONFIG = EvaluateConfig(bootstrap=200)
NUM = 80
#: 1 + the number of passages.
NOT_FOUND = 1_000_001


def make_queries(answers: bool = False) -> pa.Table:
    return records.table(
        [
            {
                "qid": f"q{i}",
                "text": NASTY if i == 3 else f"question {i}?",
                "answers": ["paris"] if answers and i % 2 else [],
                "positives": [f"d{i}"],
                "dataset": "only",
            }
            for i in range(NUM)
        ],
        records.QUERIES,
    )


def make_systems() -> list[System]:
    rng = np.random.default_rng(0)
    base = np.exp(rng.normal(3, 2, NUM))
    made = []
    for at, name in enumerate(ORDER):
        count = 30 if name == "best_of_n" else NUM
        noise = 0 if name == "bm25" else rng.normal(-0.1 * at, 1, NUM)
        ranks = np.maximum(1, base * np.exp(noise))[:count].astype(np.int32)
        if name == "rsft_dpo":
            ranks[3] = NOT_FOUND
        if name in ("bm25", "dpo"):
            ranks[5:9] = NOT_FOUND
        found = ranks < NOT_FOUND
        texts = [f"paris word{i} <b>{name}</b>" if i % 4 else "" for i in range(count)]
        made.append(
            System(
                name,
                f"label <{name}>",
                ranks,
                found,
                np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0),
                None if name.startswith("bm25") else texts,
                np.arange(count) if name == "best_of_n" else None,
                0.2,
                finished=None if name.startswith("bm25") else 0.5,
                cut=name == "bm25_rm3",
            )
        )
    return made


def named(systems: list[System], name: str) -> System:
    return next(system for system in systems if system.name == name)


def reciprocal(system: System) -> Any:
    return np.where(system.ranks < NOT_FOUND, 1 / system.ranks, 0)


@pytest.fixture(scope="module")
def systems() -> list[System]:
    return make_systems()


@pytest.fixture(scope="module")
def metrics(systems: list[System]) -> dict[str, Any]:
    return evaluate(make_queries(answers=True), systems[::-1], CONFIG)


def test_metrics_hold_every_number_of_the_table(metrics: dict[str, Any], systems: list[System]) -> None:
    assert list(metrics["systems"]) == list(ORDER)
    assert set(metrics["differences"]) == set(metrics["comparisons"]) == {f"{a}_vs_{b}" for a, b in PAIRS}
    blocks = [*metrics["systems"].values(), *metrics["differences"].values()]
    blocks += [s["without_leak"] for s in metrics["systems"].values() if "without_leak" in s]
    for block in blocks:
        for measure in MEASURES:
            found = block[measure]
            assert found["low"] <= found["value"] <= found["high"]
    for system in systems:
        found = metrics["systems"][system.name]
        assert found["mrr"]["value"] == pytest.approx(float(np.mean(reciprocal(system))))
        assert found["not_found_share"] == pytest.approx(float(np.mean(system.ranks == NOT_FOUND)))
        assert found["median_rank"] == np.median(system.ranks)
        assert found["top_5"]["value"] == pytest.approx(float(np.mean(system.ranks <= 5)))
        assert found["num_queries"] == len(system.ranks)
    assert metrics["num_queries"] == NUM
    json.dumps(metrics, allow_nan=False)


def test_differences_are_paired_over_the_queries_that_both_cover(
    metrics: dict[str, Any], systems: list[System]
) -> None:
    ranks, values = {s.name: s.ranks for s in systems}, {s.name: reciprocal(s) for s in systems}
    for a, b in PAIRS:
        count = min(len(ranks[a]), len(ranks[b]))
        of_pair = {n: np.where(ranks[n] > 1000, 0, values[n]) if "bm25_rm3" in (a, b) else values[n] for n in (a, b)}
        wanted = np.mean(of_pair[a][:count]) - np.mean(of_pair[b][:count])
        assert metrics["differences"][f"{a}_vs_{b}"]["mrr"]["value"] == pytest.approx(float(wanted))
        seen = metrics["comparisons"][f"{a}_vs_{b}"]
        assert seen["wins"] + seen["losses"] + seen["ties"] == seen["num_queries"] == count
        if "bm25_rm3" not in (a, b):
            assert seen["wins"] == int((ranks[a][:count] < ranks[b][:count]).sum())
        for outcome in ("wins", "losses", "ties"):
            assert sum(of_place[outcome] for of_place in seen["where"].values()) == seen[outcome]
        # What is not found stands at 1 + the number of passages here, too.
        near = {n: np.minimum(ranks[n], 1001) if "bm25_rm3" in (a, b) else ranks[n] for n in (a, b)}
        assert seen["halvings"] == pytest.approx(float(np.mean(np.log2(near[b][:count] / near[a][:count]))))
        assert 0 < seen["p_value"] <= 1


def test_paired_interval_is_that_of_the_differences(systems: list[System], metrics: dict[str, Any]) -> None:
    # The difference of a system to a copy of itself has no width, however wide the interval of each is.
    twin = System("rsft", "twin", systems[0].ranks, systems[0].found, systems[0].ndcg, ["x"] * NUM)
    found = evaluate(make_queries(), [systems[0], twin], CONFIG)
    assert found["differences"]["rsft_vs_bm25"]["mrr"] == pytest.approx({"value": 0, "low": 0, "high": 0})
    assert found["comparisons"]["rsft_vs_bm25"]["p_value"] == 1
    assert found["systems"]["rsft"]["mrr"] == found["systems"]["bm25"]["mrr"] == metrics["systems"]["bm25"]["mrr"]


def test_relative_gain(metrics: dict[str, Any]) -> None:
    top = {n: s["top_1"]["value"] for n, s in metrics["systems"].items()}
    gain = metrics["relative_gains"]["rsft_dpo_vs_zero_shot"]["top_1"]
    assert gain["value"] == pytest.approx(top["rsft_dpo"] / top["zero_shot"] - 1)
    assert gain["low"] <= gain["value"] <= gain["high"]


def test_leakage_and_what_is_left_without_it(metrics: dict[str, Any], systems: list[System]) -> None:
    found = metrics["systems"]["rsft"]
    # Half of the queries have the answer; every expansion but the empty ones gives it away, and those are even.
    assert found["leakage_share"] == 1
    assert found["without_leak"]["num_queries"] == NUM // 2
    kept = np.arange(NUM) % 2 == 0
    assert found["without_leak"]["mrr"]["value"] == pytest.approx(
        float(np.mean(reciprocal(named(systems, "rsft"))[kept]))
    )
    assert found["without_leak"]["bm25"]["mrr"]["value"] == pytest.approx(float(np.mean(reciprocal(systems[0])[kept])))
    assert found["empty_share"] == 0.25
    # The plain queries hold no answer.
    assert metrics["systems"]["bm25"]["leakage_share"] == 0 and "without_leak" not in metrics["systems"]["bm25"]
    without = evaluate(make_queries(), systems, CONFIG)["systems"]
    assert without["rsft"]["leakage_share"] is without["bm25"]["leakage_share"] is None


def test_every_row_of_the_tables_says_what_gives_an_answer_away(
    metrics: dict[str, Any], report: Path, systems: list[System]
) -> None:
    assert all(system["leakage_share"] is not None for system in metrics["systems"].values())
    html, text = (report / "report.html").read_text(), (report / "report.md").read_text()
    table = html[html.index("<h2>Systems</h2>") :]
    rows = re.findall(r"<tr.*?</tr>", table[: table.index("</table>")], flags=re.S)[1:]
    shares = [f"{system['leakage_share']:.1%}" for system in metrics["systems"].values()]
    assert [re.findall(r"<td>([^<]*)</td></tr>", row)[0] for row in rows] == shares
    lines = text[text.index("## Systems") :].splitlines()[4:][: len(systems)]
    assert [line.split(" | ")[-1].rstrip(" |") for line in lines] == shares
    said = " ".join(console_table(metrics).split())
    zero_shot = shares[ORDER.index("zero_shot")]
    assert "(of bm25: in the query): bm25 0.0%, " in said and f"zero_shot {zero_shot}, " in said
    assert f"best_of_n {shares[-1]}" in said


def test_what_is_not_found_is_shown_as_such(tmp_path: Path) -> None:
    ranks, found = np.array([1, 4, 4, 4], np.int32), np.array([True, False, False, False])
    queries = make_queries().slice(0, 4)
    before = System("bm25", "BM25", ranks, found, found.astype(float))
    after = System("rsft", "RSFT", ranks[[1, 0, 1, 1]], found[[1, 0, 1, 1]], np.zeros(4), ["one", "two", "three", ""])
    metrics = evaluate(queries, [before, after], CONFIG)
    assert metrics["systems"]["bm25"]["top_5"]["value"] == metrics["systems"]["rsft"]["mrr"]["value"] == 0.25
    assert metrics["systems"]["bm25"]["median_rank"] is None
    seen = metrics["comparisons"]["rsft_vs_bm25"]
    assert (seen["wins"], seen["losses"], seen["ties"], seen["halvings"]) == (1, 1, 2, 0)
    assert seen["where"]["first_10"] == {"wins": 1, "losses": 1, "ties": 0}
    assert seen["where"]["beyond"] == {"wins": 0, "losses": 0, "ties": 2}
    shown = pick_examples(queries, [before, after], metrics, 4)
    assert [(e.before, e.after) for e in (*shown.wins, *shown.losses)] == [(None, 1), (1, None)]
    assert {(e.before, e.after) for e in shown.unpicked} == {(None, None)}
    write_report(tmp_path, metrics, ReportContext("t", queries, [before, after]))
    html, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert "rank not found → 1" in html and "rank 1 → not found" in html and "<td>not found</td>" in html
    assert "rank not found → 1" in text and "rank 1 → not found" in text
    assert "rsft  not found  one" in console_examples(queries, [before, after], metrics)
    rows = pq.read_table(tmp_path / "per_query.parquet").to_pylist()
    assert [(row["gold_rank"], row["found"], row["top_5"], row["mrr"]) for row in rows[:2]] == [
        (1, True, 1, 1),
        (4, False, 0, 0),
    ]


def test_wins_and_losses_say_where_and_how_far(metrics: dict[str, Any], report: Path) -> None:
    seen = metrics["comparisons"]["rsft_dpo_vs_bm25"]
    cells = ["{wins} / {losses} / {ties}".format(**counts) for counts in (seen, *seen["where"].values())]
    line = f"| rsft\\_dpo − bm25 | {' | '.join(cells)} | {seen['halvings']:+.2f} |"
    assert line in (report / "report.md").read_text().splitlines()
    html = (report / "report.html").read_text()
    assert "<h2>Wins and losses</h2>" in html and f"<td>{seen['halvings']:+.2f}</td>" in html
    first = "{wins}/{losses}/{ties}".format(**seen["where"]["first_10"])
    assert f"first 10 {first}, 11–100 " in console_table(metrics)
    assert f"; {seen['halvings']:+.2f} halvings on average" in console_table(metrics)


def test_arrays_that_do_not_fit_are_refused(systems: list[System]) -> None:
    short = System("rsft", "short", systems[0].ranks[:5], systems[0].found[:5], systems[0].ndcg[:5])
    with pytest.raises(InputError, match="system rsft"):
        evaluate(make_queries(), [short], CONFIG)
    with pytest.raises(InputError, match="each name once"):
        evaluate(make_queries(), [systems[0], systems[0]], CONFIG)


def test_models_are_named(metrics: dict[str, Any]) -> None:
    assert main_model(metrics) == "rsft_dpo"
    best = max(("rsft", "dpo", "rsft_dpo"), key=lambda n: metrics["systems"][n]["mrr"]["value"])
    assert best_model(metrics) == best
    assert main_model({"systems": {"bm25": {}}}) is None and best_model({"systems": {"bm25": {}}}) is None


def test_examples_are_the_largest_changes_and_the_same_again(metrics: dict[str, Any], systems: list[System]) -> None:
    queries = make_queries(answers=True)
    found = pick_examples(queries, systems, metrics, 4, {"d3": ("a title", "a text")})
    assert found == pick_examples(queries, systems, metrics, 4, {"d3": ("a title", "a text")})
    ranks = {s.name: s.ranks.astype(float) for s in systems}
    gain = np.log2(ranks["bm25_tuned"] / ranks[str(found.model)])
    assert [e.qid for e in found.wins] == [f"q{i}" for i in np.argsort(-gain, kind="stable")[:4]]
    assert [e.qid for e in found.losses] == [f"q{i}" for i in np.argsort(gain, kind="stable")[:4]]
    picked = {e.qid for e in [*found.wins, *found.losses]}
    assert len(found.unpicked) == 4 and not picked & {e.qid for e in found.unpicked}
    assert pick_examples(queries, systems, metrics, 0).wins == []


class Page(HTMLParser):
    """What a page loads, and whether its elements close in order."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for key, value in attrs:
            if key in {"src", "href"}:
                self.loads.append(value or "")
            if key == "id":
                self.ids.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, Any], systems: list[System]) -> Path:
    out = tmp_path_factory.mktemp("report")
    curve = tmp_path_factory.mktemp("curves") / "loss of <rsft>.png"
    curve.write_bytes(b"\x89PNG\r\n\x1a\n")
    spent = {"start": 9.0, "load": 21.0, "work": 98.0, "write": 2.0}
    stages = [
        {"stage": "sample <1>", "seconds": 130.0, "phases": spent, "counts": {"rows": 1200}, "rates": {"rows/s": 9.23}}
    ]
    context = ReportContext(
        "A & B <title>",
        make_queries(answers=True),
        systems,
        subtitle="sub <title>",
        settings={"align": {"dpo": {"beta": 0.3}}, "name": "<x>"},
        stages=[*stages, {"stage": "rank", "seconds": 3}],
        curves=[(curve, "loss & <curve>")],
        sampling={"candidates": 64_000},
        preferences={"pairs": 12},
        dead_letters=[
            {"stage": "rank_train", "rows": 1200, "reason": "too | <long>", "path": Path("runs/x/dead_letters")}
        ],
        paths={"model": out / "model"},
        next_steps=["try <this>"],
        docs={"d3": ("title <i>", "text <i>")},
    )
    write_report(out, metrics, context)
    return out


def test_the_page_is_whole_escaped_and_asks_no_other_host(report: Path) -> None:
    html = (report / "report.html").read_text()
    page = Page()
    page.feed(html)
    assert page.open == []
    assert not {"script", "link", "iframe"} & page.tags
    assert "&lt;script&gt;alert" in html
    assert all(address.startswith(("#", "data:")) for address in page.loads)
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert len(page.ids) == len(set(page.ids))
    assert "prefers-color-scheme: dark" in html
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.S):
        ElementTree.fromstring(svg)
        assert "#23272e" not in svg


def test_the_markdown_shows_its_plots_and_means_only_itself(report: Path) -> None:
    text = (report / "report.md").read_text()
    pictures = re.findall(r"!\[[^\n]*?\]\((.+?)\)", text)
    assert len(pictures) == 7
    assert all((report / picture).exists() for picture in pictures)
    assert "<" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    starts = [i for i, line in enumerate(text.splitlines()) if line.startswith("|---")]
    lines = text.splitlines()
    assert len(starts) >= 8 and len(rows) > 40
    for start in starts:
        columns = len(re.findall(r"(?<!\\)\|", lines[start]))
        at = start - 1
        while at < len(lines) and lines[at].startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", lines[at])) == columns, lines[at]
            at += 1


def test_dead_letters_are_listed_where_there_are_some(
    report: Path, metrics: dict[str, Any], systems: list[System], tmp_path: Path
) -> None:
    assert (
        "| rank\\_train | 1,200 | too \\| &lt;long&gt; | runs/x/dead\\_letters |" in (report / "report.md").read_text()
    )
    row = '<td>rank_train</td><td>1,200</td><td class="text">too | &lt;long&gt;</td>'
    assert row in (report / "report.html").read_text()
    write_report(tmp_path, metrics, ReportContext("t", make_queries(answers=True), systems))
    assert not any("Dead letters" in (tmp_path / name).read_text() for name in ("report.md", "report.html"))


def test_the_report_leaves_data_beside_it(report: Path, metrics: dict[str, Any], systems: list[System]) -> None:
    assert json.loads((report / "metrics.json").read_text()) == metrics
    rows = pq.read_table(report / "per_query.parquet").to_pylist()
    assert len(rows) == sum(len(s.ranks) for s in systems)
    assert rows[1]["composed"] == rows[1]["query"] and rows[1]["expansion"] is None
    last = next(r for r in rows if r["system"] == "rsft" and r["qid"] == "q1")
    assert last["composed"] == "question 1 ? paris word1 <b>rsft</b>"
    assert last["gold_rank"] == named(systems, "rsft").ranks[1] and last["mrr"] == 1 / named(systems, "rsft").ranks[1]
    assert last["found"] and not next(r for r in rows if r["system"] == "bm25" and r["qid"] == "q5")["found"]


@pytest.mark.parametrize("main", ["rsft", "dpo", "rsft_dpo"])
def test_the_page_sets_off_the_rows_of_the_main_model(main: str, systems: list[System], tmp_path: Path) -> None:
    others = {"rsft": ["dpo", "rsft_dpo"], "dpo": ["rsft_dpo"], "rsft_dpo": []}[main]
    some = [system for system in systems if system.name not in others]
    metrics = evaluate(make_queries(), some, CONFIG)
    write_report(tmp_path, metrics, ReportContext("t", make_queries(), some))
    rows = re.findall(r'<tr class="main">.*?</tr>', (tmp_path / "report.html").read_text(), flags=re.S)
    pairs = [pair for pair in metrics["differences"] if pair.startswith(f"{main}_vs_")]
    # Its own, and of each of its pairs the differences, and wins and losses.
    assert pairs and len(rows) == 1 + 2 * len(pairs)
    assert all(f"</span>label &lt;{main}&gt;" in row or f"<td>label &lt;{main}&gt; " in row for row in rows)


def test_a_report_of_few_systems_and_no_facts(tmp_path: Path, systems: list[System]) -> None:
    queries = make_queries()
    for some in ([systems[0]], [named(systems, "rsft")], [systems[0], named(systems, "dpo")]):
        found = evaluate(queries, some, CONFIG)
        write_report(tmp_path, found, ReportContext("t", queries, some))
        assert "<h2>Systems</h2>" in (tmp_path / "report.html").read_text()
        assert console_table(found) and isinstance(console_examples(queries, some, found), str)


def test_console_table_fits_a_terminal(metrics: dict[str, Any], systems: list[System]) -> None:
    text = console_table(metrics)
    assert max(map(len, text.splitlines())) <= 120
    shown = [line.split()[0] for line in text.splitlines()]
    assert [n for n in shown if n.rstrip("*") in ORDER][: len(ORDER)] == [*ORDER[:-1], "best_of_n*"]
    value = metrics["systems"]["dpo"]["mrr"]["value"] * 100
    assert f"{value:.1f} [" in next(line for line in text.splitlines() if line.startswith("dpo"))
    assert "30 of the queries only" in text
    examples = console_examples(make_queries(), systems, metrics, 2)
    assert "Best wins" in examples and max(map(len, examples.splitlines())) <= 118


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234567, "1,234,567"), (0.1234, "0.123"), (None, "–"), (True, "True"), (12345.67, "12,345.7"), ("x", "x")],
)
def test_number(value: Any, shown: str) -> None:
    assert number(value) == shown


def test_a_row_of_several_seeds_is_their_mean_and_draws_them_too(systems: list[System]) -> None:
    queries, plain = make_queries(), named(systems, "bm25")
    one, two = named(systems, "rsft"), named(systems, "dpo")
    both = replace(one, others=(replace(two, name="rsft"),))
    found = evaluate(queries, [plain, both], CONFIG)["systems"]["rsft"]
    means = [float(np.mean(reciprocal(system))) for system in (one, two)]
    assert found["num_seeds"] == 2 and [of_seed["mrr"] for of_seed in found["of_seeds"]] == pytest.approx(means)
    assert found["mrr"]["value"] == pytest.approx(np.mean(means))
    # Where the queries say nothing, what is left of the interval is the seeds'.
    found_all, none = np.ones(NUM, bool), np.zeros(NUM)
    first, second = np.full(NUM, 1, np.int32), np.full(NUM, 2, np.int32)
    constant = System("rsft", "RSFT", first, found_all, none, others=(System("rsft", "", second, found_all, none),))
    seeds = evaluate(queries, [constant], CONFIG)["systems"]["rsft"]["mrr"]
    assert (seeds["low"], seeds["value"], seeds["high"]) == (0.5, 0.75, 1.0)
    # Models of the same seeds go together: their difference has no width.
    twin = evaluate(queries, [constant, replace(constant, name="dpo")], CONFIG)
    assert twin["systems"]["dpo"]["mrr"] == seeds
    part = replace(constant, others=(System("rsft", "", second[:9], found_all[:9], none[:9], index=np.arange(9)),))
    with pytest.raises(InputError, match="all its seeds must cover the same queries"):
        evaluate(queries, [part], CONFIG)


def test_test_sets_and_pools_of_them_are_reported_apart(systems: list[System], tmp_path: Path) -> None:
    of_query = ["one", "two", "one", "three"] * (NUM // 4)
    queries = make_queries()
    queries = queries.set_column(queries.schema.get_field_index("dataset"), "dataset", pa.array(of_query))
    config = CONFIG.model_copy(update={"pools": {"both": ("one", "three")}})
    metrics = evaluate(queries, systems, config)
    parts = metrics["parts"]
    assert list(parts) == ["one", "two", "three", "both"]
    assert parts["both"]["pool"] == ["one", "three"] and parts["one"]["pool"] is None
    rsft, bm25 = (reciprocal(named(systems, name)) for name in ("rsft", "bm25"))
    for name, members in {"one": ["one"], "two": ["two"], "three": ["three"], "both": ["one", "three"]}.items():
        where = np.isin(of_query, members)
        assert parts[name]["num_queries"] == where.sum()
        assert parts[name]["systems"]["rsft"]["mrr"]["value"] == pytest.approx(float(rsft[where].mean()))
        difference = parts[name]["differences"]["rsft_vs_bm25"]["mrr"]
        assert difference["value"] == pytest.approx(float((rsft - bm25)[where].mean()))
        assert difference["low"] <= difference["value"] <= difference["high"]
    for measure in ("mrr", "top_1"):
        raw = {name: parts[name]["p_values"][measure]["rsft_vs_bm25"] for name in ("one", "two", "three")}
        assert {name: parts[name]["holm"][measure]["rsft_vs_bm25"] for name in raw} == holm(raw)
    assert "holm" not in parts["both"]
    write_report(tmp_path, metrics, ReportContext("t", queries, systems))
    assert "<h2>By test set</h2>" in (tmp_path / "report.html").read_text()
    assert "## By test set" in (tmp_path / "report.md").read_text()
    alone = evaluate(make_queries(), systems, CONFIG)
    assert list(alone["parts"]) == ["only"] and alone["parts"]["only"]["differences"] == alone["differences"]
    write_report(tmp_path, alone, ReportContext("t", make_queries(), systems))
    assert "By test set" not in (tmp_path / "report.html").read_text()


def test_a_row_of_some_queries_has_others_beside_it(
    metrics: dict[str, Any], systems: list[System], report: Path
) -> None:
    beside = metrics["systems"]["best_of_n"]["beside"]
    assert list(beside) == ["bm25", "bm25_tuned", "rsft_dpo"]
    for name, measured in beside.items():
        assert measured["mrr"]["value"] == pytest.approx(float(reciprocal(named(systems, name))[:30].mean()))
    assert "on the same 30 queries" in (report / "report.html").read_text()
    assert "(MRR on the same: bm25 " in console_table(metrics)


def test_what_is_compared_with_cut_lists_is_cut_too() -> None:
    found, none = np.ones(2, bool), np.zeros(2)
    cut = System("bm25_rm3", "RM3", np.array([1, 5000], np.int32), np.array([True, False]), none, cut=True)
    far = System("rsft", "RSFT", np.array([1, 2000], np.int32), found, none, ["a", "b"])
    metrics = evaluate(make_queries().slice(0, 2), [cut, far], CONFIG)
    assert metrics["systems"]["rsft"]["mrr"]["value"] == (1 + 1 / 2000) / 2
    assert metrics["differences"]["rsft_vs_bm25_rm3"]["mrr"] == {"value": 0, "low": 0, "high": 0}
    seen = metrics["comparisons"]["rsft_vs_bm25_rm3"]
    assert seen["ties"] == 2 and seen["halvings"] == 0


def test_holm() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_results_hold_every_set_and_pair(metrics: dict[str, Any]) -> None:
    found = results({**metrics, "chosen_on_dev": {}, "made": {}})
    for name, system in metrics["systems"].items():
        for measure in MEASURES:
            assert found["datasets"]["only"][name][measure] == system[measure]
        assert found["systems"][name]["label"] == system["label"]
    assert found["differences"]["only"] == metrics["differences"] and found["queries"] == {"only": NUM}
    json.dumps(found, allow_nan=False)
