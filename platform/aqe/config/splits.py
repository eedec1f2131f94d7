"""Which queries are train, dev and test: of sources of their own or dealt out by rule; and what datasets are called."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from aqe.config.base import Config
from aqe.config.sources import (
    SPLITS,
    SYNTHETIC,
    BeirQueries,
    FileQueries,
    LaidOutQueries,
    QuerySource,
    ReverseDictionaryQueries,
    Sources,
    Split,
    SyntheticQueries,
    TrecQueries,
)

#: Keys of `queries` that may ask for synthetic ones.
ASKED_FOR = (*SPLITS, "all")
#: Ends of file names that are no part of a dataset's name.
SUFFIXES = (".gz", ".bz2", ".zst", ".zip", ".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt")


class SharesConfig(Config):
    """Which share of the queries goes where. The three add up to 1."""

    train: float = Field(default=0.8, gt=0, lt=1)
    """Share of the queries to train on."""
    dev: float = Field(default=0.1, gt=0, lt=1)
    """Share of the queries to choose settings by."""
    test: float = Field(default=0.1, gt=0, lt=1)
    """Share of the queries to report on."""

    @model_validator(mode="after")
    def _sum(self) -> "SharesConfig":
        if abs(self.train + self.dev + self.test - 1) > 1e-6:
            raise ValueError(f"train, dev and test must add up to 1, not to {self.train + self.dev + self.test:g}")
        return self


class SplitsConfig(Config):
    """Queries to train on, to choose settings by, and to report on.

    A query that is in several of them counts for the last one only. Each is one source or a list of sources. Instead
    of the three, give `all`, which is split by rule. A single synthetic source instead of all keys is short for
    `all`, with the usual shares unless it has a `split`.
    """

    train: Sources | None = None
    """Queries to train on: a source, or a list of sources."""
    dev: Sources | None = None
    """Queries to choose settings by: a source, or a list of sources."""
    test: Sources | None = None
    """Queries to report on: a source, or a list of sources."""
    all: Sources | None = None
    """Queries that `split` distributes: a source, or a list of sources."""
    split: SharesConfig | None = None
    """Shares of `all`. A hash of the question decides, so the same question always lands in the same split, and so do
    questions that say nearly the same."""

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("format") == SYNTHETIC:
            source = {key: value for key, value in given.items() if key != "split"}
            return {"all": source, "split": given.get("split", {})}
        return given

    @model_validator(mode="after")
    def _either(self) -> "SplitsConfig":
        three = [split for split in SPLITS if getattr(self, split) is not None]
        if self.all is None and len(three) < len(SPLITS):
            missing = ", ".join(split for split in SPLITS if split not in three)
            raise ValueError(f"`queries` needs train, dev and test ({missing} is missing), or all and split")
        if self.all is not None and three:
            raise ValueError(
                f"`queries` has all, which split deals out, and {', '.join(three)} too: name one or the other"
            )
        if self.all is not None and self.split is None:
            raise ValueError("`queries.all` needs `queries.split`, such as {train: 0.8, dev: 0.1, test: 0.1}")
        if self.split is not None and self.all is None:
            raise ValueError("`queries.split` deals out `queries.all`, which is missing")
        return self

    @model_validator(mode="after")
    def _asked_alike(self) -> "SplitsConfig":
        keys = [key for key in ASKED_FOR for source in self._listed(key) if isinstance(source, SyntheticQueries)]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"`queries.{twice[0]}` has several synthetic sources: name one, with the `number` of all")
        if "all" in keys and len(self._listed("all")) > 1:
            raise ValueError(
                "`queries.all` has a synthetic source and others. Only synthetic training queries are filtered, so "
                "name train, dev and test: each may be a list of a file and a synthetic source"
            )
        if len({(repr(source.prompt), source.depth) for source in self.asked.values()}) > 1:
            raise ValueError("synthetic sources need the same `prompt` and `depth` in every split; `number` may differ")
        return self

    def _listed(self, key: str) -> tuple[QuerySource | SyntheticQueries, ...]:
        sources = getattr(self, key)
        return sources if isinstance(sources, tuple) else () if sources is None else (sources,)

    @property
    def asked(self) -> dict[str, SyntheticQueries]:
        """What the base model is asked for, by key: train, dev, test, or all."""
        keys = {key: [one for one in self._listed(key) if isinstance(one, SyntheticQueries)] for key in ASKED_FOR}
        return {key: asked[0] for key, asked in keys.items() if asked}

    def synthetic(self, split: Split) -> bool:
        """Whether the queries of a split, or some of them, are."""
        return split in self.asked or "all" in self.asked

    def sources(self, split: Split) -> tuple[QuerySource, ...]:
        """What the queries of a split are read from; where a rule deals them out, those of all."""
        listed = self._listed(split if self.all is None else "all")
        return tuple(source for source in listed if not isinstance(source, SyntheticQueries))

    def written(self, directory: Path) -> "SplitsConfig":
        """The same with files in place of what the base model was asked for: `directory`/SPLIT/synthetic.parquet."""

        def file(split: Split) -> FileQueries:
            return FileQueries(format="parquet", path=directory / split / f"{SYNTHETIC}.parquet")

        if "all" in self.asked:
            return SplitsConfig(train=file("train"), dev=file("dev"), test=file("test"))
        given: dict[str, Any] = {
            split: tuple(file(split) if isinstance(one, SyntheticQueries) else one for one in self._listed(split))
            for split in SPLITS
            if split in self.asked
        }
        return self.model_copy(update=given)

    def datasets(self, split: Split) -> tuple[str, ...]:
        """The names of the datasets of a split, in order."""
        listed = self._listed(split if self.all is None else "all")
        named = dataset_names(origin for source in listed for origin in origins(source))
        return tuple(dict.fromkeys(named.values()))


def origins(source: QuerySource | SyntheticQueries) -> tuple[Path | str, ...]:
    """What the datasets of a source are told apart by: paths, or a name."""
    if isinstance(source, FileQueries | LaidOutQueries | TrecQueries):
        return source.paths
    if isinstance(source, BeirQueries):
        return (source.path,)
    if isinstance(source, ReverseDictionaryQueries | SyntheticQueries):
        return (source.format,)
    return (source.id,)


def dataset_names(of: Iterable[Path | str]) -> dict[Path | str, str]:
    """What the queries of each origin are called: the name of the file without suffixes, or of the directory.

    Where two paths are called alike, the directories above them are named too, as many as it takes.
    """
    given = list(dict.fromkeys(of))
    paths = [origin for origin in given if isinstance(origin, Path)]
    named: dict[Path | str, str] = {origin: str(origin) for origin in given}
    for depth in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = {path: _suffixless("/".join(path.parts[-depth:])) for path in paths}
        if len(set(names.values())) == len(paths):
            return named | dict(names)
    return named


def _suffixless(name: str) -> str:
    while (bare := next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name)) != name:
        name = bare
    return name
