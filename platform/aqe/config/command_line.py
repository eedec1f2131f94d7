"""Which configuration a command line asks for: `--config`, `--set`, `--base-dir`, `--limit` and `--small`."""

from dataclasses import dataclass, replace
from pathlib import Path

from aqe.config.pipeline import PipelineConfig, limited, load_config, own_directory

#: What `--small` sets, as `--set` has it, of any configuration: the model that ships as a package in place of one with
#: billions of parameters, few and short candidates, and one aligned model, trained once.
SMALL = (
    "model={source: package:smollm2-135m-instruct}",
    "sample.num_samples=8",
    "sample.max_tokens=24",
    "models=[rsft_dpo]",
    "evaluate.seeds=1",
)
#: Queries of each source of a small run, where `--limit` does not say another number.
QUERIES = 200


@dataclass(frozen=True)
class CommandLine:
    """What is typed. Relative paths are below `base_dir`, where it is given."""

    config: str
    """A preset's name or a file's path."""
    overrides: tuple[str, ...] = ()
    base_dir: Path | None = None
    limit: int | None = None
    small: bool = False

    @property
    def directory(self) -> Path:
        """Where relative paths begin."""
        return self.base_dir or own_directory(self.config)

    @property
    def smaller(self) -> "CommandLine":
        """The same with `--small`, without what would make it larger again."""
        keys = tuple(one.partition("=")[0] for one in SMALL)
        kept = [one for one in self.overrides if not any(_below(one.partition("=")[0], key) for key in keys)]
        limit = self.limit if self.limit is not None and self.limit <= QUERIES else None
        return replace(self, overrides=tuple(kept), limit=limit, small=True)

    @property
    def options(self) -> list[str]:
        """As they are typed."""
        options = ["--config", self.config, *(part for one in self.overrides for part in ("--set", one))]
        options += [] if self.base_dir is None else ["--base-dir", str(self.base_dir)]
        options += [] if self.limit is None else ["--limit", str(self.limit)]
        return options + ["--small"] * self.small

    def load(self) -> PipelineConfig:
        """The configuration. What is typed counts more than what `--small` sets. Raises ConfigError as load_config."""
        overrides, limit = self.overrides, self.limit
        if self.small:
            overrides, limit = (*SMALL, *overrides), limit or QUERIES
        config = load_config(self.config, overrides, self.base_dir)
        return config if limit is None else limited(config, limit)


def _below(key: str, other: str) -> bool:
    """Whether one of two keys is the other, or a part of it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")
