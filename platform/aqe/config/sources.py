"""Where passages, queries and judgements come from: a format, and what it needs to be found."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field, model_validator

from aqe.config.base import Config
from aqe.config.sample import PromptConfig

Paths = Path | tuple[Path, ...]
Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
#: The format of queries that the base model writes, and what their dataset is called.
SYNTHETIC = "synthetic"


def as_tuple(paths: Paths) -> tuple[Path, ...]:
    return paths if isinstance(paths, tuple) else (paths,)


class Columned(Config):
    """Rows with named columns. The usual names are known (docs/formats.md); `columns` says others."""

    ours: ClassVar[tuple[str, ...]] = ()
    columns: dict[str, str] = Field(default_factory=dict)
    """Ours to theirs, such as `{docid: _id, text: contents}`; `answers.text` is a field inside a column."""

    @model_validator(mode="after")
    def _known(self) -> "Columned":
        if unknown := sorted(self.columns.keys() - set(self.ours)):
            raise ValueError(f"`columns` has {', '.join(unknown)}; there are {', '.join(self.ours)}")
        return self


class Files(Columned):
    """Files with a row a line, or Parquet; .gz, .bz2 or .zst but for Parquet."""

    format: Literal["parquet", "jsonl", "csv", "tsv"]
    path: Paths
    """A file, a directory of files, or a list of them."""
    header: tuple[str, ...] | None = None
    """Columns of CSV and TSV without a line that names them, in order."""
    quoted: bool | None = None
    """Whether fields of CSV and TSV may stand in double quotes; null means that those of CSV may."""

    @property
    def paths(self) -> tuple[Path, ...]:
        return as_tuple(self.path)

    @model_validator(mode="after")
    def _fits(self) -> "Files":
        if self.format not in ("csv", "tsv") and (self.header is not None or self.quoted is not None):
            raise ValueError(f"`header` and `quoted` are of csv and tsv, not of {self.format}")
        return self


class FromHub(Columned):
    """A dataset of the Hugging Face hub, or a directory that `Dataset.save_to_disk` wrote."""

    format: Literal["huggingface"]
    id: str
    """`owner/name`, or the directory."""
    name: str | None = None
    """The configuration, where the dataset has several."""
    split: str = "train"
    revision: str | None = None


class FromIrDatasets(Config):
    """A dataset of the package ir_datasets, by its id, such as `beir/scifact/test`."""

    format: Literal["ir_datasets"]
    id: str


# Corpora.

PASSAGE_COLUMNS = ("docid", "title", "text")


class FileCorpus(Files):
    """Passages in files: docid, text, and a title where there is one."""

    ours = PASSAGE_COLUMNS


class LaidOutCorpus(Config):
    """Passages as a collection publishes them: BEIR's folder or zip, DPR's psgs_w100.tsv, MS MARCO's collection.tsv."""

    format: Literal["beir", "dpr", "msmarco"]
    path: Path


class IrDatasetsCorpus(FromIrDatasets):
    """Documents of a dataset."""


class HubCorpus(FromHub):
    """Passages of a dataset."""

    ours = PASSAGE_COLUMNS


class AnseriniCorpus(Config):
    """The passages that an Anserini index stores; it is what is searched, too, unless `index.path` names another."""

    format: Literal["anserini"]
    path: Path | None = None
    """The index' directory."""
    prebuilt: str | None = None
    """Or the name of one that Pyserini fetches, such as `beir-v1.0.0-scifact.flat`."""

    @model_validator(mode="after")
    def _one(self) -> "AnseriniCorpus":
        if (self.path is None) == (self.prebuilt is None):
            raise ValueError("an anserini corpus has either `path`, a directory, or `prebuilt`, a name")
        return self


class ReverseDictionary(Config):
    """The quickstart's corpus and queries, from two dictionaries that ship as Python packages."""

    format: Literal["reverse_dictionary"]


CorpusConfig = Annotated[
    FileCorpus | LaidOutCorpus | IrDatasetsCorpus | HubCorpus | AnseriniCorpus | ReverseDictionary,
    Field(discriminator="format"),
]


# Judgements.


class FileQrels(Files):
    """Judgements in files: qid, docid, relevance."""

    ours = ("qid", "docid", "relevance")


class TrecQrels(Config):
    """Judgements as TREC writes them, `qid 0 docid relevance`: MS MARCO's too."""

    format: Literal["trec"]
    path: Paths


class IrDatasetsQrels(FromIrDatasets):
    """Judgements of a dataset."""


class HubQrels(FromHub):
    """Judgements of a dataset, such as `BeIR/scifact-qrels`."""

    ours = FileQrels.ours


QrelsConfig = Annotated[FileQrels | TrecQrels | IrDatasetsQrels | HubQrels, Field(discriminator="format")]


# Queries.

QUERY_COLUMNS = ("qid", "text", "answers", "positives")


class AnswersConfig(Config):
    """When a passage holds an answer, where only answers are known."""

    match: Literal["dpr", "regex", "substring"] = "dpr"
    """`dpr`: its words stand there in a row (Karpukhin et al. 2020); `regex`: it is a regular expression (CuratedTREC);
    `substring`: it stands there, inside a word too, which scripts without blanks need (Chinese, Japanese, Thai, Korean
    with its particles)."""


class Asked(Config):
    """What every source of queries has."""

    skip: int = Field(default=0, ge=0)
    """Queries left out from the head of each file, after `order`."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many queries of each file; null means all."""
    order: Literal["file", "hash"] = "hash"
    """`hash`: in the order of the MD5 of their qid, so that a `limit` is a fair sample; `file`: as they lie."""
    qrels: QrelsConfig | None = None
    """Which passages are relevant, and how much, in files of their own; they decide alone where they are given."""
    exclude_self: bool = False
    """Take the passage whose docid is the qid out of the ranking (ArguAna, Quora: the query is a passage itself)."""
    answers: AnswersConfig = AnswersConfig()


class FileQueries(Files, Asked):
    """Queries in files: qid, text and, where they are known, answers or positives (docids)."""

    ours = QUERY_COLUMNS
    without: tuple[Path, ...] = ()
    """Files of the same format whose questions are left out, before anything is skipped or counted."""


class BeirQueries(Asked):
    """Queries of BEIR's folder or zip, with the judgements of one split; others are no queries of it."""

    format: Literal["beir"]
    path: Path
    split: str = "test"


class LaidOutQueries(Asked):
    """DPR's questions (csv without a header, or json with positive contexts), or MS MARCO's queries.tsv."""

    format: Literal["dpr", "msmarco"]
    path: Paths

    @property
    def paths(self) -> tuple[Path, ...]:
        return as_tuple(self.path)


class TrecQueries(Asked):
    """TREC's topics: in tags (`<top>`, `<topic number=...>`), or a line each, `number:text` or with a tab."""

    format: Literal["trec"]
    path: Paths
    field: Literal["title", "description", "narrative"] = "title"
    """What of a topic in tags is the query. A `<query>` is a title."""

    @property
    def paths(self) -> tuple[Path, ...]:
        return as_tuple(self.path)


class IrDatasetsQueries(FromIrDatasets, Asked):
    """Queries of a dataset, with its judgements."""


class HubQueries(FromHub, Asked):
    """Queries of a dataset."""

    ours = QUERY_COLUMNS


class ReverseDictionaryQueries(Config):
    """One split of the quickstart's queries."""

    format: Literal["reverse_dictionary"]
    split: Split
    skip: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)


class SyntheticQueries(Config):
    """Queries that nobody asked: the base model writes them, each of a passage of the corpus, which is relevant."""

    model_config = ConfigDict(populate_by_name=True)

    format: Literal["synthetic"]
    corpus: Literal["corpus"] = Field(default="corpus", alias="from")
    """Where the passages come from; there is one corpus."""
    number: int = Field(ge=1)
    """Passages that are asked for a query. Fewer queries are left: the log says how many, and why."""
    prompt: str | PromptConfig = "question_few_shot"
    """What asks for a query: a name from `aqe.prompts`, or one spelled out, with `{passage}` in its template."""
    depth: int = Field(default=100, ge=2)
    """A training query is kept where plain BM25 finds its passage within so many, but not first. dev and test keep
    all."""


#: What is read, where a synthetic source is asked for.
QuerySource = (
    FileQueries | BeirQueries | LaidOutQueries | TrecQueries | IrDatasetsQueries | HubQueries | ReverseDictionaryQueries
)
QueriesConfig = Annotated[QuerySource | SyntheticQueries, Field(discriminator="format")]
Sources = QueriesConfig | Annotated[tuple[QueriesConfig, ...], Field(min_length=1)]
