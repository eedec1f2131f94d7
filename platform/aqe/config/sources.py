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
    """Rows with named columns. The usual names are known (docs/formats.md); `columns` names others."""

    ours: ClassVar[tuple[str, ...]] = ()
    columns: dict[str, str] = Field(default_factory=dict)
    """Maps our column names to yours, such as `{docid: _id, text: contents}`. `answers.text` is a field inside a
    column."""

    @model_validator(mode="after")
    def _known(self) -> "Columned":
        if unknown := sorted(self.columns.keys() - set(self.ours)):
            raise ValueError(f"`columns` has {', '.join(unknown)}; there are {', '.join(self.ours)}")
        return self


class Files(Columned):
    """Files with one row per line, or Parquet. Text files may be .gz, .bz2 or .zst."""

    format: Literal["parquet", "jsonl", "csv", "tsv"]
    """How the rows are stored (docs/formats.md)."""
    path: Paths
    """A file, a directory of files, or a list of them."""
    header: tuple[str, ...] | None = None
    """The columns in order, for CSV and TSV whose first line does not name them."""
    quoted: bool | None = None
    """Whether fields of CSV and TSV may be in double quotes. `null` means yes for CSV and no for TSV."""

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
    """How the rows are stored (docs/formats.md)."""
    id: str
    """Id of the dataset: `owner/name`, or the directory."""
    name: str | None = None
    """Configuration of the dataset, if it has several."""
    split: str = "train"
    """Split of the dataset."""
    revision: str | None = None
    """Commit, branch or tag of the dataset."""


class FromIrDatasets(Config):
    """A dataset of the package ir_datasets, by its id, such as `beir/scifact/test`."""

    format: Literal["ir_datasets"]
    """How the rows are stored (docs/formats.md)."""
    id: str
    """Id of the dataset, such as `beir/scifact/test`."""


# Corpora.

PASSAGE_COLUMNS = ("docid", "title", "text")


class FileCorpus(Files):
    """Passages in files: docid, text, and a title where there is one."""

    ours = PASSAGE_COLUMNS


class LaidOutCorpus(Config):
    """Passages as a collection publishes them: BEIR's folder or zip, DPR's psgs_w100.tsv, MS MARCO's collection.tsv."""

    format: Literal["beir", "dpr", "msmarco"]
    """How the rows are stored (docs/formats.md)."""
    path: Path
    """The folder or file as it is published; of BEIR also the zip."""


class IrDatasetsCorpus(FromIrDatasets):
    """Documents of a dataset."""


class HubCorpus(FromHub):
    """Passages of a dataset."""

    ours = PASSAGE_COLUMNS


class AnseriniCorpus(Config):
    """The passages that an Anserini index stores. This index is also searched, unless `index.path` names another
    one."""

    format: Literal["anserini"]
    """How the rows are stored (docs/formats.md)."""
    path: Path | None = None
    """Directory of the index."""
    prebuilt: str | None = None
    """Instead of `path`: the name of an index that Pyserini fetches, such as `beir-v1.0.0-scifact.flat`."""

    @model_validator(mode="after")
    def _one(self) -> "AnseriniCorpus":
        if (self.path is None) == (self.prebuilt is None):
            raise ValueError("an anserini corpus has either `path`, a directory, or `prebuilt`, a name")
        return self


class ReverseDictionary(Config):
    """The quickstart's corpus, from a dictionary that ships as a Python package."""

    format: Literal["reverse_dictionary"]
    """How the rows are stored (docs/formats.md)."""


CorpusConfig = Annotated[
    FileCorpus | LaidOutCorpus | IrDatasetsCorpus | HubCorpus | AnseriniCorpus | ReverseDictionary,
    Field(discriminator="format"),
]


# Judgements.


class FileQrels(Files):
    """Judgements in files: qid, docid, relevance."""

    ours = ("qid", "docid", "relevance")


class TrecQrels(Config):
    """Judgements in TREC's form, `qid 0 docid relevance`. MS MARCO has it too."""

    format: Literal["trec"]
    """How the rows are stored (docs/formats.md)."""
    path: Paths
    """A file, a directory of files, or a list of them."""


class IrDatasetsQrels(FromIrDatasets):
    """Judgements of a dataset."""


class HubQrels(FromHub):
    """Judgements of a dataset, such as `BeIR/scifact-qrels`."""

    ours = FileQrels.ours


QrelsConfig = Annotated[FileQrels | TrecQrels | IrDatasetsQrels | HubQrels, Field(discriminator="format")]


# Queries.

QUERY_COLUMNS = ("qid", "text", "answers", "positives")


class AnswersConfig(Config):
    """When a passage holds an answer, if only answers are known."""

    match: Literal["dpr", "regex", "substring"] = "dpr"
    """`dpr`: the words of the answer occur in a row (Karpukhin et al. 2020). `regex`: the answer is a regular
    expression (CuratedTREC). `substring`: the answer occurs, even inside a word; scripts without blanks need this
    (Chinese, Japanese, Thai, Korean with its particles)."""


class Asked(Config):
    """What every source of queries has."""

    skip: int = Field(default=0, ge=0)
    """Queries to leave out at the head of each file, after `order`."""
    limit: int | None = Field(default=None, ge=1)
    """Queries to take from each file at most. `null` means all."""
    order: Literal["file", "hash"] = "hash"
    """`hash` takes queries in the order of the MD5 of their qid, so that a `limit` is a fair sample. `file` takes them
    in the order of the file."""
    qrels: QrelsConfig | None = None
    """Which passages are relevant, and how much, in files of their own. If you give it, nothing else decides."""
    exclude_self: bool = False
    """Take the passage whose docid equals the qid out of the ranking (ArguAna, Quora: the query is itself a
    passage)."""
    answers: AnswersConfig = AnswersConfig()
    """When a passage holds an answer."""


class FileQueries(Files, Asked):
    """Queries in files: qid, text and, where they are known, answers or positives (docids)."""

    ours = QUERY_COLUMNS
    without: tuple[Path, ...] = ()
    """Files of the same format whose questions are left out before anything is skipped or counted."""


class BeirQueries(Asked):
    """Queries of BEIR's folder or zip that the judgements of one split name."""

    format: Literal["beir"]
    """How the rows are stored (docs/formats.md)."""
    path: Path
    """BEIR's folder or its zip."""
    split: str = "test"
    """Split of BEIR's judgements."""


class LaidOutQueries(Asked):
    """DPR's questions (csv without a header, or json with positive contexts), or MS MARCO's queries.tsv."""

    format: Literal["dpr", "msmarco"]
    """How the rows are stored (docs/formats.md)."""
    path: Paths
    """A file, a directory of files, or a list of them."""

    @property
    def paths(self) -> tuple[Path, ...]:
        return as_tuple(self.path)


class TrecQueries(Asked):
    """TREC's topics: in tags (`<top>`, `<topic number=...>`), or one per line, as `number:text` or with a tab."""

    format: Literal["trec"]
    """How the rows are stored (docs/formats.md)."""
    path: Paths
    """A file, a directory of files, or a list of them."""
    field: Literal["title", "description", "narrative"] = "title"
    """Part of a topic in tags that is the query. `<query>` counts as a title."""

    @property
    def paths(self) -> tuple[Path, ...]:
        return as_tuple(self.path)


class IrDatasetsQueries(FromIrDatasets, Asked):
    """Queries of a dataset, with its judgements."""


class HubQueries(FromHub, Asked):
    """Queries of a dataset."""

    ours = QUERY_COLUMNS


class ReverseDictionaryQueries(Config):
    """One split of the quickstart's queries, from a dictionary that ships as a Python package."""

    format: Literal["reverse_dictionary"]
    """How the rows are stored (docs/formats.md)."""
    split: Split
    """Split of the quickstart's queries."""
    skip: int = Field(default=0, ge=0)
    """Queries to leave out at the head of each file, after `order`."""
    limit: int | None = Field(default=None, ge=1)
    """Queries to take from each file at most. `null` means all."""


class SyntheticQueries(Config):
    """Queries that the base model writes. Each belongs to a passage of the corpus, and that passage is relevant."""

    model_config = ConfigDict(populate_by_name=True)

    format: Literal["synthetic"]
    """How the rows are stored (docs/formats.md)."""
    corpus: Literal["corpus"] = Field(default="corpus", alias="from")
    """Where the passages come from. There is one corpus."""
    number: int = Field(ge=1)
    """Passages that the model is asked about. Fewer queries remain; the log says how many, and why."""
    prompt: str | PromptConfig = "question_few_shot"
    """Prompt that asks for a query: a name, or a prompt that you spell out with `{passage}` in its template."""
    depth: int = Field(default=100, ge=2)
    """A training query stays if plain BM25 finds its passage within this depth, but not first. dev and test keep
    all."""


#: What is read, where a synthetic source is asked for.
QuerySource = (
    FileQueries | BeirQueries | LaidOutQueries | TrecQueries | IrDatasetsQueries | HubQueries | ReverseDictionaryQueries
)
QueriesConfig = Annotated[QuerySource | SyntheticQueries, Field(discriminator="format")]
Sources = QueriesConfig | Annotated[tuple[QueriesConfig, ...], Field(min_length=1)]
