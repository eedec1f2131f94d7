"""Postings, lengths and docids of a Lucene index, written to flat files by the JVM at the speed of its own loops.

Python may not ask Java for one posting at a time (microseconds each), and no Java compiler ships with a run time. So
the loops are composed of method handles, which HotSpot compiles like any other loop: some 10 ns a posting.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aqe.errors import ArtifactError, InputError
from aqe.index import jvm

CONTENTS, DOCID = "contents", "id"
#: Terms that one call into Java writes; Python says how far it is between two calls.
CHUNK = 50_000


@dataclass(frozen=True)
class Dump:
    """One field of one segment, terms in byte order.

    terms: for each term its length (uint32), bytes, document frequency (uint32).
    postings: for each term its (document, term frequency) pairs (uint32, uint32), documents ascending.
    """

    terms: Path
    postings: Path
    num_terms: int
    num_postings: int


class PostingsReader:
    """Opens a Lucene index; starts the JVM of this process.

    Raises InputError for an index with deleted passages, or one that is not of Anserini's making.
    """

    def __init__(self, index: Path, heap: str) -> None:
        self._java = java = jvm.start(heap)
        paths = java("java.nio.file.Paths")
        self._directory = java("org.apache.lucene.store.FSDirectory").open(paths.get(str(index)))
        self._reader = java("org.apache.lucene.index.DirectoryReader").open(self._directory)
        if self._reader.hasDeletions():
            raise InputError(
                f"{index} holds deleted passages, which Lucene still counts: merge it to one segment first."
            )
        self._segments = [leaf.reader() for leaf in self._reader.leaves()]
        for field in (CONTENTS, DOCID):
            if not any(segment.terms(field) is not None for segment in self._segments):
                raise InputError(f"{index} has no field {field!r}; Anserini's indexes have {CONTENTS!r} and {DOCID!r}")
        self._write_terms, self._write_norms = _loops(java)

    @property
    def num_passages(self) -> int:
        """Passages in the index."""
        return int(self._reader.maxDoc())

    @property
    def segments(self) -> list[int]:
        """Passages of each segment."""
        return [int(segment.maxDoc()) for segment in self._segments]

    @property
    def scored_passages(self) -> int:
        """Passages with any text: Lucene's document count in idf and in the mean length."""
        return int(self._reader.getDocCount(CONTENTS))

    @property
    def total_terms(self) -> int:
        """Tokens of all passages: Lucene's numerator of the mean length."""
        return int(self._reader.getSumTotalTermFreq(CONTENTS))

    def dump(self, segment: int, field: str, out: Path) -> Dump:
        """Write terms and postings of one field of one segment into the directory `out`."""
        terms = self._segments[segment].terms(field)
        # A segment whose passages are all without terms does not have the field.
        count, postings = (0, 0) if terms is None else (int(terms.size()), int(terms.getSumDocFreq()))
        dumped = Dump(out / f"{field}-{segment}.terms", out / f"{field}-{segment}.postings", count, postings)
        iterator = None if terms is None else terms.iterator()
        with _Output(self._java, dumped.terms) as to, _Output(self._java, dumped.postings) as into:
            for start in range(0, count, CHUNK):
                self._write_terms(iterator, to.java, into.java, min(CHUNK, count - start))
        return dumped

    def norms(self, segment: int, out: Path) -> npt.NDArray[np.uint8]:
        """Lucene's one-byte length of each passage of a segment; 0 for a passage without text."""
        values = self._segments[segment].getNormValues(CONTENTS)
        lengths = np.zeros(self.segments[segment], np.uint8)
        if values is None:
            return lengths
        path = out / f"norms-{segment}"
        # Not the field's document count: a passage without terms has a length too, 0, if it has the field.
        count = int(values.cost())
        with _Output(self._java, path) as to:
            self._write_norms(values, to.java, count)
        pairs = np.fromfile(path, np.dtype([("document", "<u4"), ("length", "u1")]))
        if (
            len(pairs) != count
            or values.nextDoc() != 2**31 - 1
            or (np.diff(pairs["document"].astype(np.int64)) <= 0).any()
        ):
            raise ArtifactError("Lucene gave other lengths than it announced: the index is corrupt")
        lengths[pairs["document"]] = pairs["length"]
        path.unlink()
        return lengths

    def close(self) -> None:
        """Give the files back."""
        self._reader.close()
        self._directory.close()


class _Output:
    """A file that Lucene writes, little-endian."""

    def __init__(self, java: Any, path: Path) -> None:
        self._directory = java("org.apache.lucene.store.FSDirectory").open(
            java("java.nio.file.Paths").get(str(path.parent))
        )
        path.unlink(missing_ok=True)
        self.java = self._directory.createOutput(path.name, java("org.apache.lucene.store.IOContext").DEFAULT)

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *_: object) -> None:
        self.java.close()
        self._directory.close()


def _loops(java: Any) -> tuple[Any, Any]:
    """Two Java functions: (TermsEnum, terms out, postings out, n) and (NumericDocValues, out, n)."""
    mh, mt = java("java.lang.invoke.MethodHandles"), java("java.lang.invoke.MethodType").methodType
    named = java("java.lang.Class").forName
    integer = java("java.lang.Integer")
    int_, long_, byte_, void = (
        integer.TYPE,
        java("java.lang.Long").TYPE,
        java("java.lang.Byte").TYPE,
        java("java.lang.Void").TYPE,
    )
    index = "org.apache.lucene.index."
    postings, terms, values = (named(index + n) for n in ("PostingsEnum", "TermsEnum", "NumericDocValues"))
    out, ref = named("org.apache.lucene.store.IndexOutput"), named("org.apache.lucene.util.BytesRef")
    bytes_ = named("[B")
    look = mh.publicLookup()

    def virtual(owner: Any, name: str, result: Any, *args: Any) -> Any:
        return look.findVirtual(owner, name, mt(result, *args) if args else mt(result))

    def reorder(handle: Any, result: Any, args: list[Any], *order: int) -> Any:
        return mh.permuteArguments(handle, mt(result, *args), *order)

    write_int = virtual(out, "writeInt", void, int_)
    length = look.findGetter(ref, "length", int_)
    # (out, postings): one document and its term frequency.
    document = mh.filterArguments(write_int, 1, virtual(postings, "nextDoc", int_))
    frequency = mh.filterArguments(write_int, 1, virtual(postings, "freq", int_))
    pair = mh.foldArguments(frequency, document)
    # (postings, out, n): all of a term's postings.
    body = reorder(pair, void, [int_, postings, out], 2, 1)
    one_term = mh.countedLoop(
        mh.dropArguments(mh.identity(int_), 0, postings, out), None, mh.dropArguments(body, 3, int_)
    )
    # (out, terms): the next term and its document frequency.
    text = virtual(out, "writeBytes", void, bytes_, int_, int_)
    text = mh.filterArguments(
        text, 1, look.findGetter(ref, "bytes", bytes_), look.findGetter(ref, "offset", int_), length
    )
    text = reorder(text, void, [out, ref], 0, 1, 1, 1)
    text = mh.foldArguments(text, mh.filterArguments(write_int, 1, length))
    text = mh.collectArguments(text, 1, virtual(terms, "next", ref))
    df = virtual(terms, "docFreq", int_)
    head = mh.foldArguments(mh.filterArguments(write_int, 1, df), text)
    # (postings to use again, terms, out) -> postings of the current term, all written.
    opened = mh.insertArguments(virtual(terms, "postings", postings, postings, int_), 2, integer(8))
    written = mh.filterArguments(one_term, 2, df)
    written = mh.foldArguments(mh.dropArguments(mh.identity(postings), 1, out, terms), written)
    step = mh.collectArguments(written, 0, opened)
    args = [postings, int_, terms, out, out, int_]
    step = reorder(step, postings, args, 2, 0, 4, 2)
    step = mh.foldArguments(step, reorder(head, void, args, 3, 2))
    count = mh.dropArguments(mh.identity(int_), 0, terms, out, out)
    start = mh.dropArguments(mh.constant(postings, None), 0, terms, out, out, int_)
    all_terms = mh.countedLoop(count, start, step)

    # (values, out): the next document and its length byte.
    number = mh.filterArguments(write_int, 1, virtual(values, "nextDoc", int_))
    byte = mh.explicitCastArguments(virtual(values, "longValue", long_), mt(byte_, values))
    byte = mh.filterArguments(virtual(out, "writeByte", void, byte_), 1, byte)
    norm = reorder(mh.foldArguments(byte, number), void, [int_, values, out, int_], 2, 1)
    norms = mh.countedLoop(mh.dropArguments(mh.identity(int_), 0, values, out), None, norm)
    return (
        lambda iterator, to, into, n: all_terms.invokeWithArguments(iterator, to, into, integer(n)),
        lambda lengths, to, n: norms.invokeWithArguments(lengths, to, integer(n)),
    )
