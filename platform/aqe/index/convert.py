"""Lucene index -> impact index: the postings of any Anserini index, laid out for exact gold ranks (aqe.index.shard).

The JVM writes all postings to flat files; then each document shard picks its own out of them, in tasks that run beside
one another. A task holds 8 bytes a posting of its shard: memory depends on the shard's size, not on the corpus'.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from aqe.artifact import verify
from aqe.compiled import compiled
from aqe.config.data import IndexConfig
from aqe.errors import DataError
from aqe.index import jvm
from aqe.index.layout import Layout, Segment, make_shard
from aqe.index.postings import CONTENTS, DOCID, Dump, PostingsReader
from aqe.nodes import Nodes, on_node
from aqe.observe.lines import Line
from aqe.observe.progress import Say, say
from aqe.storage import retry


def build_impacts(
    out: Path,
    lucene: Path,
    config: IndexConfig,
    say: Say,
    run: Callable[..., Sequence[int]] | None = None,
    title: str = "build_impacts",
) -> dict[str, Any]:
    """Write `out`/impacts-*.safetensors from the Lucene index `lucene`. Starts the JVM of this process.

    `run(make_shard, layout, out, ranges)` makes the shards, by default one after another here. `title` begins
    the lines that are said. Returns counts, seconds and bytes. Raises DataError for an index that Anserini did not
    make: two passages with one docid, or a missing field.
    """
    started = time.perf_counter()
    verify(lucene, patient=True)
    # What an interrupted run left, perhaps with shards of another size.
    for stale in out.glob("impacts-*"):
        stale.unlink()
    dump = out / "dump"
    say(Line(title, "reading Lucene's postings"))
    reader = PostingsReader(lucene, config.jvm_heap)

    def read() -> Layout:
        shutil.rmtree(dump, ignore_errors=True)
        dump.mkdir(parents=True)
        with jvm.io_errors():
            return _layout(reader, dump, config.language)

    with closing(reader):
        layout = retry(dump, read)
    num_passages = len(layout.docids)
    postings_read = int(layout.df.sum(dtype=np.int64))
    say(Line(title, f"{num_passages:,} passages, {len(layout.vocabulary):,} terms, {postings_read:,} postings read"))
    size = config.passages_per_shard
    ranges = [(start, min(start + size, num_passages)) for start in range(0, num_passages, size)]
    postings = (run or _one_after_another)(make_shard, layout, out, ranges)
    shutil.rmtree(dump)
    written = sum(path.stat().st_size for path in out.glob("impacts-*.safetensors"))
    return {
        "passages": num_passages,
        "terms": len(layout.vocabulary),
        "postings": sum(postings),
        "shards": len(ranges),
        "bytes": written,
        "bytes_per_posting": round(written / max(sum(postings), 1), 3),
        "seconds": round(time.perf_counter() - started, 2),
    }


def build_impacts_on_ray(
    out: Path, lucene: Path, config: IndexConfig, nodes: Nodes, title: str = "build_impacts"
) -> dict[str, Any]:
    """The same in a worker process that may have a JVM, its shards in tasks of their own; on these nodes.

    Needs a connection to Ray.
    """
    run = partial(_side_by_side, dict(nodes.labels))
    stats: dict[str, Any] = on_node(nodes, build_impacts, out, lucene, config, say, run, title, env=jvm.ray_env())
    return stats


def _side_by_side(
    labels: dict[str, str], make: Callable[..., int], layout: Layout, out: Path, ranges: Sequence[tuple[int, int]]
) -> list[int]:
    # So many tasks on a node as its memory holds: 14 bytes a posting, docids and terms beside them.
    postings = int(layout.df.sum(dtype=np.int64)) // len(ranges)
    memory = 14 * postings + 150 * len(layout.docids) // len(ranges) + 24 * len(layout.vocabulary)
    shared, task = ray.put(layout), ray.remote(num_cpus=1, memory=memory, label_selector=labels)(make)
    postings_of_shards: list[int] = ray.get(
        [task.remote(shared, out, i, len(ranges), *bounds) for i, bounds in enumerate(ranges)]
    )
    return postings_of_shards


def _one_after_another(
    make: Callable[..., int], layout: Layout, out: Path, ranges: Sequence[tuple[int, int]]
) -> list[int]:
    return [make(layout, out, i, len(ranges), *bounds) for i, bounds in enumerate(ranges)]


def _layout(reader: PostingsReader, dump: Path, language: str) -> Layout:
    docids, documents, contents, lengths = [], [], [], []
    for segment, size in enumerate(reader.segments):
        ids = reader.dump(segment, DOCID, dump)
        own, df = _terms(ids)
        if len(own) != size or (df != 1).any():
            raise DataError(f"the index has {size} passages in a segment, but {len(own)} different docids")
        docids.append(own)
        documents.append(np.fromfile(ids.postings, np.uint32)[::2])
        contents.append(reader.dump(segment, CONTENTS, dump))
        lengths.append(reader.norms(segment, dump))
    every = pa.concat_arrays(docids)
    order = pc.sort_indices(every)
    every = every.take(order)
    if len(every) > 1 and pc.any(pc.equal(every[1:], every[:-1])).as_py():
        raise DataError(
            "two passages of the index have the same docid: build it again from a corpus without duplicates"
        )
    number = np.empty(len(every), np.uint32)
    number[order.to_numpy()] = np.arange(len(every), dtype=np.uint32)
    terms = [_terms(c) for c in contents]
    vocabulary = pc.unique(pa.concat_arrays([own for own, _ in terms]))
    vocabulary = vocabulary.take(pc.sort_indices(vocabulary))
    df = np.zeros(len(vocabulary), np.uint32)
    segments, start = [], 0
    for (own, own_df), ids_of, dumped, norms in zip(terms, documents, contents, lengths, strict=True):
        global_terms = pc.index_in(own, value_set=vocabulary).to_numpy().astype(np.uint32)
        df[global_terms] += own_df
        # The segment's n-th docid belongs to its document ids_of[n].
        docs = np.empty(len(ids_of), np.uint32)
        docs[ids_of] = number[start : start + len(ids_of)]
        start += len(ids_of)
        segments.append(Segment(dumped.postings, own_df, global_terms, docs, norms))
    _check_stop_words(vocabulary, df, len(every), language)
    header = {"scored_passages": reader.scored_passages, "total_terms": reader.total_terms, "analyzer": language}
    return Layout(tuple(segments), vocabulary, df, every, header)


def _check_stop_words(vocabulary: Any, df: npt.NDArray[np.uint32], passages: int, language: str) -> None:
    """Refuse an index of another analyzer than Anserini's English one: queries would miss its terms."""
    the = pc.index(vocabulary, pa.scalar(b"the", pa.large_binary())).as_py()
    # Porter makes "the" of some rare words.
    if language == "en" and the >= 0 and df[the] > 10 + 0.01 * passages:
        raise DataError(
            f"the index holds the stop word 'the' in {df[the]} passages, so it was not made by Anserini's default "
            "English analyzer. Say which language it was made for (index.language), or build it again."
        )


def _terms(dump: Dump) -> tuple[pa.LargeBinaryArray, npt.NDArray[np.uint32]]:
    """Terms and document frequencies of a dumped field."""
    raw = np.fromfile(dump.terms, np.uint8)
    starts, df, text = _parse(raw, dump.num_terms)
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(text)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), dump.num_terms, buffers), df


@compiled
def _uint32(raw: Any, at: Any) -> Any:
    a, b, c, d = np.int64(raw[at]), np.int64(raw[at + 1]), np.int64(raw[at + 2]), np.int64(raw[at + 3])
    return a | b << 8 | c << 16 | d << 24


@compiled
def _parse(raw: Any, count: Any) -> Any:
    """Starts of the terms in `text`, document frequencies, text: see aqe.index.postings.Dump."""
    starts, df = np.zeros(count + 1, np.int64), np.zeros(count, np.uint32)
    text = np.zeros(max(len(raw) - 8 * count, 0), np.uint8)
    at: Any = 0
    for i in range(count):
        size = _uint32(raw, at)
        starts[i + 1] = starts[i] + size
        text[starts[i] : starts[i + 1]] = raw[at + 4 : at + 4 + size]
        df[i] = _uint32(raw, at + 4 + size)
        at += 8 + size
    return starts, df, text
