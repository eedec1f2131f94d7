"""Which passages are relevant: judged by name, or found by the queries' answers with one of three rules, exactly.

DPR's rule (Karpukhin et al. 2020, `has_answer` with its SimpleTokenizer): NFD, tokens are runs of letters, digits and
marks or single other visible characters, lower case; an answer is contained when its tokens stand in the text in a row.
One deviation: an answer without any token matches nothing, where DPR's loop would let it match every passage.

Its rule for regular expressions (CuratedTREC) searches the text in NFD, whatever the case. `substring` is for scripts
without blanks between words: the answer stands in the text, both in NFKC, without case, blanks as one.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import ray
import ray.data
import regex  # type: ignore[import-untyped]

from aqe import records
from aqe.artifact import GROUP_ROWS, parquet_files, write_parquet
from aqe.errors import DataError

#: Raise it when judging gives anything else for the same input than before: its artifacts are named by it.
VERSION = 2
#: Whose version changes what it gives: `regex` knows Unicode's classes.
PACKAGES = ("regex",)

_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
#: Letters of scripts that are written without blanks between words, or with endings that stick to them.
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")
#: Seconds that one regular expression may take for one passage.
_PATTERN_SECONDS = 2.0
_ASCII_TOKEN = re.compile(r"[a-z0-9]+|[!-/:-@\[-`{-~]")  # the same rule for lower-cased ASCII, several times faster

SET_ASIDE = pa.schema([("qid", pa.string()), ("reason", pa.string())])

#: A trie over tokens: token -> next node, and under None the answers' number where a phrase ends.
_Node = dict[str | None, Any]


def tokens(text: str) -> list[str]:
    """DPR's uncased tokens of a text."""
    if text.isascii():
        return _ASCII_TOKEN.findall(text.lower())
    # Token by token: whether a Greek sigma is final depends on what surrounds it.
    return [token.lower() for token in _TOKEN.findall(unicodedata.normalize("NFD", text))]


def contains_answer(text: str, answers: Iterable[str]) -> bool:
    """Whether `text` contains one of `answers` by DPR's rule. The plain form; `Matcher` does the same for many."""
    words = tokens(text)
    for answer in map(tokens, answers):
        size = len(answer)
        if size and any(words[i : i + size] == answer for i in range(len(words) - size + 1)):
            return True
    return False


def characters(text: str) -> list[str]:
    """The tokens of the rule `substring`: single characters."""
    return list(" ".join(unicodedata.normalize("NFKC", text).casefold().split()))


class Matcher:
    """Finds which of many queries' answers a text contains, in one walk over its tokens."""

    def __init__(self, answers: Sequence[Iterable[str]], tokens: Callable[[str], list[str]] = tokens) -> None:
        """`answers[i]` are the answer strings of query i; `tokens` cuts them and the texts alike."""
        self._root: _Node = {}
        self._tokens = tokens
        phrases: dict[tuple[str, ...], set[int]] = {}
        for query, strings in enumerate(answers):
            for phrase in map(tuple, map(tokens, strings)):
                if phrase:
                    phrases.setdefault(phrase, set()).add(query)
        self._queries = [sorted(queries) for queries in phrases.values()]
        for number, phrase in enumerate(phrases):
            node = self._root
            for token in phrase:
                node = node.setdefault(token, {})
            node[None] = number

    def find(self, text: str) -> list[int]:
        """Sorted numbers of the queries with an answer in `text`."""
        words = self._tokens(text)
        root, size = self._root, len(words)
        phrases: set[int] = set()
        for start, word in enumerate(words):
            node, end = root.get(word), start + 1
            while node is not None:
                if None in node:
                    phrases.add(node[None])
                node = node.get(words[end]) if end < size else None
                end += 1
        return sorted({query for number in phrases for query in self._queries[number]})


class Patterns:
    """Finds which of many queries' regular expressions match a text, as DPR does."""

    def __init__(self, answers: Sequence[Iterable[str]]) -> None:
        """`answers[i]` are the expressions of query i. DataError for one that is none."""
        self._patterns = [[pattern(answer) for answer in of if answer] for of in answers]

    def find(self, text: str) -> list[int]:
        """Sorted numbers of the queries of which an expression matches `text`."""
        text = unicodedata.normalize("NFD", text)
        return [i for i, of in enumerate(self._patterns) if any(_matches(one, text) for one in of)]


def pattern(answer: str) -> Any:
    """A compiled answer. DataError where it is no regular expression."""
    try:
        flags = regex.IGNORECASE | regex.MULTILINE
        return regex.compile(unicodedata.normalize("NFD", answer), flags)
    except regex.error as error:
        raise DataError(
            f"the answer {answer!r} is no regular expression ({error}). Correct it, or choose answers: {{match: dpr}}."
        ) from None


def _matches(compiled: Any, text: str) -> bool:
    try:
        return compiled.search(text, timeout=_PATTERN_SECONDS) is not None
    except TimeoutError:
        raise DataError(
            f"the answer {compiled.pattern!r} takes more than {_PATTERN_SECONDS:g} s for one passage, as expressions "
            "with nested repetitions do. Rewrite it."
        ) from None


class Rules:
    """The queries' answers, each by the rule that its query names."""

    def __init__(self, answers: Sequence[Iterable[str]], match: Sequence[str]) -> None:
        made: dict[str, Callable[[Sequence[Iterable[str]]], Matcher | Patterns]] = {
            "dpr": Matcher,
            "substring": partial(Matcher, tokens=characters),
            "regex": Patterns,
        }
        self._rules = []
        for rule in dict.fromkeys(match):
            own = [i for i, name in enumerate(match) if name == rule]
            self._rules.append((made[rule]([answers[i] for i in own]), own))

    def find(self, text: str) -> list[int]:
        """Sorted numbers of the queries with an answer in `text`."""
        return sorted(own[i] for rule, own in self._rules for i in rule.find(text))


def _match_shards(block: pa.Table, matcher: "list[ray.ObjectRef[Rules]]") -> pa.Table:
    """(file, group) of Parquet row groups -> (query: int32, docid) of all matches in them. Runs as a Ray task."""
    find = ray.get(matcher[0]).find
    queries: list[int] = []
    docids: list[str] = []
    for shard in block.to_pylist():
        with pq.ParquetFile(shard["file"]) as source:
            passages = source.read_row_group(shard["group"], columns=["docid", "text"])
        for docid, text in zip(passages["docid"].to_pylist(), passages["text"].to_pylist(), strict=True):
            numbers = find(text)
            queries += numbers
            docids += [docid] * len(numbers)
    return pa.table({"query": pa.array(queries, pa.int32()), "docid": pa.array(docids, pa.string())})


def _by_answers(files: Sequence[Path], queries: pa.Table, labels: Mapping[str, str]) -> pa.Table:
    """Those that contain an answer, each with relevance 1, over the whole corpus on Ray Data."""
    matcher = ray.put(Rules(queries["answers"].to_pylist(), queries["match"].to_pylist()))
    # The row groups' names are the data and each is a block of its own: read_parquet merges small files into one block
    # (Ray 2.60), which would leave all but one core idle, and would move passages that a task can read itself.
    shards = [{"file": str(f.absolute()), "group": g} for f in files for g in range(pq.read_metadata(f).num_row_groups)]
    matches = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
        _match_shards,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"matcher": [matcher]},
        label_selector=dict(labels),
    )
    tables = [table for table in ray.get(matches.to_arrow_refs()) if table.num_rows]
    if not tables:
        return records.QRELS.empty_table()
    matched = pa.concat_tables(tables)
    ones = np.ones(matched.num_rows, np.int32)
    return pa.table(
        {"qid": queries["qid"].take(matched["query"]), "docid": matched["docid"], "relevance": ones},
        schema=records.QRELS,
    )


def _by_positives(files: Sequence[Path], queries: pa.Table) -> pa.Table:
    """Those that are judged by name and in the corpus, each pair once."""
    named = [(row["qid"], *judged) for row in queries.to_pylist() for judged in _judged(row).items()]
    there = in_corpus(files, {docid for _, docid, _ in named})
    rows = [{"qid": qid, "docid": docid, "relevance": grade} for qid, docid, grade in named if docid in there]
    return pa.Table.from_pylist(rows, schema=records.QRELS)


def _judged(query: Mapping[str, Any]) -> dict[str, int]:
    """docid -> relevance of the passages that a query (records.QUERIES) names."""
    return dict(zip(query["positives"], query["relevance"], strict=True))


def _never_found(queries: pa.Table) -> int:
    """Queries whose rule is `dpr`, with an answer in a script without blanks."""
    rows = zip(queries["match"].to_pylist(), queries["answers"].to_pylist(), strict=True)
    return sum(rule == "dpr" and any(map(_UNSPACED.search, answers)) for rule, answers in rows)


def _filled(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    """True where a list has an element; null counts as empty."""
    return pc.fill_null(pc.greater(pc.list_value_length(lists), 0), False)


def _order(pairs: pa.Table) -> Any:
    """Row numbers that sort pairs by qid, docid (bytes). On ranks: millions of pairs share few strings."""
    keys = []
    for name in ("docid", "qid"):
        coded = pairs[name].combine_chunks().dictionary_encode()
        rank = np.empty(len(coded.dictionary), np.int64)
        rank[pc.sort_indices(coded.dictionary).to_numpy()] = np.arange(len(rank))
        keys.append(rank[coded.indices.to_numpy()])
    return np.lexsort(keys)


def judge(
    corpus_dir: Path,
    queries: pa.Table,
    say: Callable[[str], None] = print,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> tuple[pa.Table, dict[str, Any]]:
    """Relevant passages of records.QUERIES in a corpus artifact (or a directory or file of records.CORPUS).

    `positives` decide where a query has any, even if the corpus has none of them; else its `answers` do. Returns
    records.QRELS sorted by qid and docid, and statistics. Ray must be initialised if any query has only answers.
    ArtifactError where the corpus is missing. `labels`: of the nodes that look for answers.
    """
    files = parquet_files(corpus_dir)
    named = _filled(queries["positives"])
    by_name = queries.filter(named)
    to_find = queries.filter(pc.and_(pc.invert(named), _filled(queries["answers"])))
    pairs = [records.QRELS.empty_table()]
    if by_name.num_rows:
        pairs.append(_by_positives(files, by_name))
    if to_find.num_rows:
        say(f"looking for the answers of {to_find.num_rows:,} queries in the whole corpus")
        if unspaced := _never_found(to_find):
            say(
                f"{unspaced:,} of them have answers in a script without blanks between words, which the rule "
                "`dpr` hardly ever finds. In their source: answers: {match: substring}"
            )
        pairs.append(_by_answers(files, to_find, labels))
    qrels = _without_excluded(pa.concat_tables(pairs), queries)
    qrels = qrels.take(_order(qrels))
    relevant = qrels.filter(pc.greater(qrels["relevance"], 0))
    judged = pc.count_distinct(relevant["qid"]).as_py()
    stats = {
        "queries": queries.num_rows,
        "judged": judged,
        "by_positives": by_name.num_rows,
        "by_answers": to_find.num_rows,
        "without_relevant": queries.num_rows - judged,
        "relevant_pairs": relevant.num_rows,
        "not_relevant_pairs": qrels.num_rows - relevant.num_rows,
        "coverage": round(judged / queries.num_rows, 4) if queries.num_rows else 0.0,
        "unknown_positives": len(unknown_positives(queries, qrels)),
    }
    say(
        f"{judged:,} of {queries.num_rows:,} queries have a relevant passage ({stats['coverage']:.1%}), "
        f"{relevant.num_rows:,} pairs; {stats['without_relevant']:,} are set aside"
    )
    return qrels, stats


def _without_excluded(qrels: pa.Table, queries: pa.Table) -> pa.Table:
    """Without the passages that a query's ranking is without: its answers may stand in them."""
    out = {(row["qid"], docid) for row in queries.select(["qid", "excluded"]).to_pylist() for docid in row["excluded"]}
    if not out:
        return qrels
    pairs = zip(qrels["qid"].to_pylist(), qrels["docid"].to_pylist(), strict=True)
    return qrels.filter(pa.array([pair not in out for pair in pairs], pa.bool_()))


def unknown_positives(queries: pa.Table, qrels: pa.Table) -> list[dict[str, str]]:
    """Dead letters: named passages that the corpus does not have."""
    queries = queries.filter(_filled(queries["positives"]))
    # Only these queries' pairs: those found by answers may be millions.
    named = qrels.filter(pc.is_in(qrels["qid"], value_set=queries["qid"].combine_chunks()))
    known = set(zip(named["qid"].to_pylist(), named["docid"].to_pylist(), strict=True))
    return [
        {
            "stage": "judge",
            "place": query["qid"],
            "reason": "names a passage that the corpus lacks",
            "row": json.dumps({"qid": query["qid"], "docid": docid}),
        }
        for query in queries.select(["qid", "positives"]).to_pylist()
        for docid in query["positives"]
        if (query["qid"], docid) not in known
    ]


def set_aside(queries: pa.Table, qrels: pa.Table) -> pa.Table:
    """(qid, reason) of the queries without a relevant passage: no measure is defined for them."""
    rows = []
    judged = set(pc.unique(qrels.filter(pc.greater(qrels["relevance"], 0))["qid"]).to_pylist())
    for query in queries.to_pylist():
        if query["qid"] not in judged:
            if query["positives"]:
                graded = max(query["relevance"]) > 0
                reason = "none of its positives is in the corpus" if graded else "no passage is judged relevant"
            elif query["answers"]:
                reason = "no passage contains an answer"
            else:
                reason = "nobody says what is relevant: it has neither answers nor positives, and no judgement"
            rows.append({"qid": query["qid"], "reason": reason})
    return pa.Table.from_pylist(rows, schema=SET_ASIDE)


def in_corpus(files: Sequence[Path], docids: Collection[str]) -> set[str]:
    """Those of `docids` that the corpus has."""
    if not docids:
        return set()
    wanted = pc.field("docid").isin(pa.array(sorted(docids), pa.string()))
    data = pads.dataset([str(file) for file in files], format="parquet")
    return set(data.scanner(columns=["docid"], filter=wanted).to_table()["docid"].to_pylist())


def known_excluded(files: Sequence[Path], queries: pa.Table) -> pa.Table:
    """The queries with those of their `excluded` that the corpus has: a ranker knows no others."""
    excluded = queries["excluded"].to_pylist()
    there = in_corpus(files, {docid for of in excluded for docid in of})
    kept = pa.array([[docid for docid in of if docid in there] for of in excluded], pa.list_(pa.string()))
    return queries.set_column(queries.schema.get_field_index("excluded"), "excluded", kept)


def judged_queries(queries: pa.Table, qrels: pa.Table) -> pa.Table:
    """records.JUDGED: those of `queries` that have a relevant passage, with all of theirs, in their order."""
    relevant = qrels.filter(pc.greater(qrels["relevance"], 0))
    # On one thread, a group keeps the order of its rows.
    grouped = relevant.group_by("qid", use_threads=False).aggregate([("docid", "list"), ("relevance", "list")])
    place = pc.index_in(queries["qid"], value_set=grouped["qid"].combine_chunks())
    judged, own = queries.filter(pc.is_valid(place)), grouped.take(place.drop_null())
    columns = [*(judged[name] for name in records.QUERIES.names), own["docid_list"], own["relevance_list"]]
    return pa.table(columns, names=records.JUDGED.names).cast(records.JUDGED)


def write_judgement(
    out: Path,
    corpus_dir: Path,
    queries: pa.Table,
    say: Callable[[str], None] = print,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Judge, and write out/qrels.parquet, queries.parquet, set_aside.parquet and, if any, dead_letters.parquet."""
    queries = known_excluded(parquet_files(corpus_dir), queries)
    qrels, stats = judge(corpus_dir, queries, say, labels)
    write_parquet(qrels, out / "qrels.parquet")
    write_parquet(judged_queries(queries, qrels), out / "queries.parquet", GROUP_ROWS)
    write_parquet(set_aside(queries, qrels), out / "set_aside.parquet")
    (out / "dead_letters.parquet").unlink(missing_ok=True)
    if dead := unknown_positives(queries, qrels):
        write_parquet(records.table(dead, records.DEAD_LETTERS), out / "dead_letters.parquet")
    return stats
