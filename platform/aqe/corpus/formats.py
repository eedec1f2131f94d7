"""Each format's reader: what a source holds, in parts that are read each by itself, and what its columns are called."""

import zipfile
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aqe.artifact import digest, file_digest, versions
from aqe.config.sources import (
    AnseriniCorpus,
    BeirQueries,
    CorpusConfig,
    FileCorpus,
    FileQrels,
    FileQueries,
    Files,
    FromHub,
    FromIrDatasets,
    IrDatasetsQrels,
    LaidOutCorpus,
    LaidOutQueries,
    QrelsConfig,
    QuerySource,
    ReverseDictionary,
    ReverseDictionaryQueries,
    TrecQrels,
    TrecQueries,
    as_tuple,
)
from aqe.config.splits import dataset_names
from aqe.corpus import columns, rows, trec
from aqe.corpus.columns import Names
from aqe.corpus.rows import Flaw, Form, RawRow
from aqe.errors import InputError

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet",),
    **{form: tuple(f".{form}{end}" for end in ("", *rows.COMPRESSED)) for form in ("jsonl", "csv", "tsv")},
}


class Part(Protocol):
    """A piece of a source that is read by itself, in another process too."""

    def rows(self, wanted: Container[str]) -> Iterator[tuple[str, RawRow | Flaw]]:
        """(place, row) in order, at least with the columns `wanted` where the source has them."""
        ...


@dataclass(frozen=True)
class Source:
    """What is read: parts in order, and where our columns lie in their rows."""

    parts: Sequence[Part]
    names: Names
    paths: tuple[Path, ...] = ()
    """Files that it lies in."""
    called: str = ""
    """What it is called where it lies in no files of its own."""
    needs_java: bool = False

    @property
    def identity(self) -> str:
        """What tells it from a source with other rows."""
        return digest([self.called, *map(file_digest, self.paths)])


def files(path: Path, form: str) -> list[Path]:
    """The file, or those of the directory with the format's suffix by name. InputError when there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path.absolute()} does not exist. Name a {form} file or a directory of them.")
    found = sorted(p for p in path.iterdir() if p.name.endswith(_SUFFIXES[form]) and not p.name.startswith("."))
    if not found:
        there = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise InputError(f"{path} holds no file named *{' or *'.join(_SUFFIXES[form])}; it holds {there}.")
    return found


def passages(config: CorpusConfig) -> Source:
    """A corpus. InputError for what is missing or cannot be read."""
    names = Names(columns.PASSAGES, getattr(config, "columns", None))
    match config:
        case FileCorpus():
            return _files(config, names)
        case LaidOutCorpus(format="beir"):
            return _beir(config.path, "corpus.jsonl", "jsonl", names)
        case LaidOutCorpus(format="dpr"):
            return Source(rows.parts(_file(config.path), "tsv", quoted=True), names, (config.path,))
        case LaidOutCorpus():
            return Source(rows.parts(_file(config.path), "tsv", names=("docid", "text")), names, (config.path,))
        case AnseriniCorpus():
            from aqe.corpus import anserini

            index = config.path or anserini.fetched(str(config.prebuilt))
            return Source([anserini.Stored(index)], names, (index,), needs_java=True)
        case ReverseDictionary():
            from aqe.corpus import reverse_dictionary

            return Source([reverse_dictionary.Passages()], names, called=reverse_dictionary.identity())
        case FromHub():
            return _hub(config, names)
        case FromIrDatasets():
            return _ir_dataset(config.id, "docs", names)
    raise AssertionError(config)


def queries(config: QuerySource, path: Path | None = None, called: str | None = None) -> Source:
    """The queries of a source, of one path of it where it has several. `called`: what begins qids that are made up."""
    names = Names(columns.QUERIES, getattr(config, "columns", None))
    match config:
        case FileQueries():
            return _files(config, names, path)
        case BeirQueries():
            return _beir(config.path, "queries.jsonl", "jsonl", names)
        case LaidOutQueries(format="dpr"):
            from aqe.corpus.dpr import Questions

            those = _those(config.path, path)
            return Source([Questions(_file(one), called or dataset_names(those)[one]) for one in those], names, those)
        case LaidOutQueries():
            those = _those(config.path, path)
            parts = [part for one in those for part in rows.parts(_file(one), "tsv", names=("qid", "text"))]
            return Source(parts, names, those)
        case TrecQueries():
            those = _those(config.path, path)
            return Source([trec.Topics(_file(one), config.field) for one in those], names, those)
        case ReverseDictionaryQueries():
            from aqe.corpus import reverse_dictionary

            return Source([reverse_dictionary.Queries(config.split)], names, called=reverse_dictionary.identity())
        case FromHub():
            return _hub(config, names)
        case FromIrDatasets():
            return _ir_dataset(config.id, "queries", names)
    raise AssertionError(config)


def qrels(config: QuerySource) -> Source | None:
    """The judgements of a source of queries: those that are named, or that its format has; None where it has none."""
    if isinstance(config, ReverseDictionaryQueries):
        return None
    if config.qrels is not None:
        return _judgements(config.qrels)
    if isinstance(config, BeirQueries):
        return _beir(config.path, f"qrels/{config.split}.tsv", "tsv", Names(columns.QRELS))
    if isinstance(config, FromIrDatasets):
        return _ir_dataset(config.id, "qrels", Names(columns.QRELS))
    return None


def _judgements(config: QrelsConfig) -> Source:
    names = Names(columns.QRELS, getattr(config, "columns", None))
    match config:
        case FileQrels():
            return _files(config, names)
        case TrecQrels():
            those = as_tuple(config.path)
            return Source([trec.Judgements(_file(one)) for one in those], names, those)
        case IrDatasetsQrels():
            return _ir_dataset(config.id, "qrels", names)
    return _hub(config, names)


def _files(config: Files, names: Names, path: Path | None = None) -> Source:
    form: Form = config.format
    those = _those(config.path, path)
    found = [file for one in those for file in files(one, form)]
    return Source([p for file in found for p in rows.parts(file, form, config.header, config.quoted)], names, those)


def _those(paths: Path | tuple[Path, ...], path: Path | None) -> tuple[Path, ...]:
    return as_tuple(paths) if path is None else (path,)


def _file(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path.absolute()} {'is not a file' if path.exists() else 'does not exist'}. Name one.")
    return path


def _beir(path: Path, name: str, form: Form, names: Names) -> Source:
    """A file of BEIR's layout, in a folder or a zip. Of a folder the others are no part of what it is."""
    if path.is_dir():
        inside = next((one for end in ("", ".gz") if (one := path / f"{name}{end}").is_file()), None)
        if inside is None:
            raise InputError(f"{path} has no {name}, as BEIR's folders have. {_other_splits(path, name)}")
        return Source(rows.parts(inside, form), names, (inside,))
    with zipfile.ZipFile(_file(path)) if zipfile.is_zipfile(_file(path)) else _no_zip(path) as archive:
        members = [member for member in archive.namelist() if member == name or member.endswith(f"/{name}")]
    if not members:
        raise InputError(f"{path} has no {name} in it, as BEIR's zips have.")
    return Source([rows.Part(path, form, member=members[0])], names, (path,))


def _no_zip(path: Path) -> zipfile.ZipFile:
    raise InputError(f"{path} is neither a folder nor a zip, as BEIR's datasets are.")


def _other_splits(path: Path, name: str) -> str:
    there = ", ".join(sorted(file.stem for file in (path / "qrels").glob("*.tsv")))
    return f"Its qrels are of {there}." if there and name.startswith("qrels/") else "Is it the right folder?"


def _hub(config: FromHub, names: Names) -> Source:
    from aqe.corpus.packages import hub_dataset, hub_parts

    parts = hub_parts(config)
    data = hub_dataset(config.id, config.name, config.split, config.revision)
    return Source(parts, names, called=f"{config.id} {data._fingerprint}")


def _ir_dataset(name: str, what: str, names: Names) -> Source:
    from aqe.corpus.packages import IrDataset, ir_dataset

    ir_dataset(name, what)  # type: ignore[arg-type]
    return Source([IrDataset(name, what)], names, called=f"{name} {versions('ir_datasets')}")  # type: ignore[arg-type]
