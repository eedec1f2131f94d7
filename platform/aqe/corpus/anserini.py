"""The passages that an Anserini index stores."""

import json
from collections.abc import Container, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from aqe.corpus.rows import Flaw, RawRow
from aqe.errors import InputError
from aqe.index import jvm

#: What Anserini may store of a passage: the row it was made from, or its text.
RAW, CONTENTS, DOCID = "raw", "contents", "id"
HEAP = "1g"


@dataclass(frozen=True)
class Stored:
    """The stored passages of an index, read by the JVM of this process."""

    index: Path

    def rows(self, wanted: Container[str]) -> Iterator[tuple[str, RawRow | Flaw]]:
        """(place, row). InputError where the index stores no texts."""
        java = jvm.start(HEAP)
        directory = java("org.apache.lucene.store.FSDirectory").open(java("java.nio.file.Paths").get(str(self.index)))
        with closing(directory), closing(java("org.apache.lucene.index.DirectoryReader").open(directory)) as reader:
            stored = reader.storedFields()
            for number in range(reader.maxDoc()):
                document = stored.document(number)
                raw, contents = document.get(RAW), document.get(CONTENTS)
                if raw is None and contents is None:
                    raise InputError(
                        f"{self.index} does not store its passages' texts. Name the corpus that it was made from, with "
                        "index.path for the index; or build it with Anserini's -storeRaw or -storeContents."
                    )
                yield f"{self.index}:{number + 1}", _row(document.get(DOCID), raw, contents)


def _row(docid: str, raw: str | None, contents: str | None) -> RawRow:
    """Title and text as they were given to Anserini, where the index tells them apart."""
    given: Any = None
    if raw is not None:
        try:
            given = json.loads(raw)
        except ValueError:
            given = {"contents": raw}
    row = given if isinstance(given, dict) else {"contents": contents if raw is None else raw}
    return {**{name: row[name] for name in ("title", "text", "contents") if name in row}, "docid": docid}


@cache
def fetched(name: str) -> Path:
    """The directory of an index that Pyserini knows by name, fetched where it is not there yet. InputError if not."""
    # Pyserini asks Java for the names. A JVM stays with its process, and Ray and a JVM bear each other badly in one.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        return apart.submit(_fetch, name).result()


def _fetch(name: str) -> Path:
    jvm.start(HEAP)
    from pyserini.util import download_prebuilt_index

    try:
        return Path(download_prebuilt_index(name, verbose=False))
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"corpus.prebuilt: Pyserini cannot get the index {name!r}: {said}") from None
