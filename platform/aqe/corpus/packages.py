"""Datasets that packages bring: ir_datasets' and the Hugging Face hub's."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from aqe.config.sources import FromHub
from aqe.corpus.rows import Flaw, RawRow
from aqe.errors import DependencyError, InputError

#: Rows of a hub dataset that one part reads.
HUB_ROWS = 100_000

What = Literal["docs", "queries", "qrels"]


@dataclass(frozen=True)
class IrDataset:
    """Documents, queries or judgements of a dataset of ir_datasets."""

    id: str
    what: What

    def rows(self, wanted: Container[str]) -> Iterator[tuple[str, RawRow | Flaw]]:
        """(place, row). A document is its title, where it has one beside its text, and else its default text."""
        dataset = ir_dataset(self.id, self.what)
        for number, one in enumerate(getattr(dataset, f"{self.what}_iter")(), 1):
            yield f"{self.id}:{number}", _ROW[self.what](one)


def ir_dataset(name: str, *has: What) -> Any:
    """A dataset that has what is asked for. InputError where there is none of this id, or it lacks some."""
    try:
        import ir_datasets  # type: ignore[import-untyped]
    except ImportError:
        raise DependencyError("format: ir_datasets needs the package ir_datasets: pip install ir-datasets") from None
    try:
        dataset = ir_datasets.load(name)
    except KeyError:
        raise InputError(f"ir_datasets has no dataset {name!r}. https://ir-datasets.com lists them.") from None
    for what in has:
        if not getattr(dataset, f"has_{what}")():
            raise InputError(f"the dataset {name!r} of ir_datasets has no {what}. Name one that has, or part of it.")
    return dataset


def _document(document: Any) -> RawRow:
    title, text = (getattr(document, name, None) for name in ("title", "text"))
    if isinstance(title, str) and isinstance(text, str):
        return {"docid": document.doc_id, "title": title, "text": text}
    return {"docid": document.doc_id, "text": document.default_text()}


def _query(query: Any) -> RawRow:
    return {"qid": query.query_id, "text": query.default_text()}


def _judgement(qrel: Any) -> RawRow:
    return {"qid": qrel.query_id, "docid": qrel.doc_id, "relevance": qrel.relevance}


_ROW = {"docs": _document, "queries": _query, "qrels": _judgement}


@dataclass(frozen=True)
class HubRows:
    """Rows `start` to `stop` of a dataset of the Hugging Face hub, or of a saved one."""

    id: str
    name: str | None
    split: str
    revision: str | None
    start: int
    stop: int

    def rows(self, wanted: Container[str]) -> Iterator[tuple[str, RawRow | Flaw]]:
        """(place, row), of the columns `wanted`."""
        data = hub_dataset(self.id, self.name, self.split, self.revision)
        names = [name for name in data.column_names if name in wanted]
        # Of no columns it has no rows.
        rows: Iterable[RawRow] = ({} for _ in range(self.start, self.stop))
        if names:
            rows = data.select_columns(names).select(range(self.start, self.stop))
        for number, row in enumerate(rows, self.start + 1):
            yield f"{self.id}[{self.split}]:{number}", row


def hub_parts(config: FromHub) -> list[HubRows]:
    """The dataset in parts. InputError where it cannot be had."""
    named = config.id, config.name, config.split, config.revision
    rows = len(hub_dataset(*named))
    return [HubRows(*named, start, min(start + HUB_ROWS, rows)) for start in range(0, rows, HUB_ROWS)]


@cache
def hub_dataset(where: str, name: str | None, split: str, revision: str | None) -> Any:
    """A split of a dataset. It is fetched once; InputError where it cannot be had, with what there is instead."""
    try:
        import datasets
    except ImportError:
        raise DependencyError("format: huggingface needs the package datasets: pip install datasets") from None
    saved = Path(where)
    try:
        if any((saved / file).exists() for file in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(where)
            if isinstance(found, datasets.DatasetDict):
                if split not in found:
                    raise InputError(f"{where} has the splits {', '.join(found)}, not {split!r}.")
                found = found[split]
        else:
            found = datasets.load_dataset(where, name, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # The errors of datasets are of these kinds, RuntimeError for one that is a script; so is a hub that cannot be
        # asked.
        said = " ".join(str(error).split())[:300]
        raise InputError(f"the dataset {where!r} (split {split!r}) cannot be loaded: {said}") from None
    return found
