"""The whole configuration, and how it is read: defaults, then a preset or file, then `--set key.path=value`."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from aqe.config.align import AlignConfig
from aqe.config.base import Config, explain, nearest
from aqe.config.data import IndexConfig, ModelConfig, is_path
from aqe.config.evaluate import EvaluateConfig
from aqe.config.rank import PreferConfig, RankConfig
from aqe.config.sample import EngineConfig, PromptConfig, SampleConfig
from aqe.config.sources import SPLITS, AnseriniCorpus, CorpusConfig, FromHub, SyntheticQueries
from aqe.config.splits import SplitsConfig
from aqe.errors import ConfigError

PRESETS = Path(__file__).parents[1] / "presets"


#: The aligned models, and the set that each of their stages learns.
STAGES: Mapping[str, tuple[Literal["rsft", "dpo"], ...]] = {
    "rsft": ("rsft",),
    "dpo": ("dpo",),
    "rsft_dpo": ("rsft", "dpo"),
}


#: The base model where it is asked with the prompt that serves.
BASE = "base"
#: The control that learns a random candidate.
RANDOM = "rsft_random"


def steps(model: str) -> tuple[str | None, str]:
    """The model that a model's last stage starts from, None for the base model; and the set that the stage learns."""
    if model == RANDOM:
        return None, RANDOM
    before, _, targets = model.rpartition("_")
    return before or None, targets


def every_stage(model: str) -> list[str]:
    """The models that a model's stages end in, itself the last: of rsft_dpo, rsft too."""
    stages = model.split("_")
    return ["_".join(stages[: i + 1]) for i in range(len(stages))]


TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]


class PriceConfig(Config):
    """What an hour costs, in any currency. If you set it, every stage says what it cost."""

    cpu: float | None = Field(default=None, ge=0)
    """Price of one CPU core for an hour."""
    gpu: float | None = Field(default=None, ge=0)
    """Price of one GPU for an hour."""


class PipelineConfig(Config):
    """One run of the loop."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the run. Its artifacts are in `runs_dir`/`name`. If you leave it out, the run has the name of the
    file."""
    runs_dir: Path = Path("runs")
    """Directory that holds the runs."""
    model: ModelConfig = ModelConfig()
    """The base model."""
    corpus: CorpusConfig
    """The passages that are searched."""
    queries: SplitsConfig
    """Queries to train on, to choose settings by, and to report on."""
    index: IndexConfig = IndexConfig()
    """The BM25 index and its settings."""
    prompt: str | PromptConfig = "ear"
    """Prompt that trains and serves: a name, or a prompt that you spell out."""
    engine: EngineConfig = EngineConfig()
    """What generates text."""
    sample: SampleConfig = SampleConfig()
    """How candidates are drawn."""
    rank: RankConfig = RankConfig()
    """How candidates are ranked and searched."""
    prefer: PreferConfig = PreferConfig()
    """Which candidates the model learns from."""
    align: AlignConfig = AlignConfig()
    """How the model is trained."""
    models: tuple[str, ...] = ("rsft", "dpo", "rsft_dpo")
    """Aligned models that a run trains and compares: `rsft`, `dpo`, `rsft_dpo`."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What the report compares."""
    price_per_hour: PriceConfig = PriceConfig()
    """Prices, if you want every stage to say what it cost."""
    track: tuple[TrackerName, ...] = ()
    """Trackers that get the curves and results of every stage, under one run: tensorboard, mlflow, wandb, trackio."""
    max_dead_share: float = Field(default=0.01, ge=0, le=1)
    """A stage fails if more than this share of its rows could not be processed."""

    @model_validator(mode="after")
    def _fits(self) -> "PipelineConfig":
        unknown = [m for m in self.models if m not in STAGES]
        if unknown or not self.models:
            meant = nearest(unknown[0], STAGES) if unknown else ""
            raise ValueError(f"`models` is {list(self.models)}; it can name {', '.join(STAGES)}.{meant}")
        trained = {stage for model in self.models for stage in STAGES[model]} | set(self.align.stages)
        if "dpo" in trained and self.sample.num_samples < 2 and not self.prefer.include_plain:
            raise ValueError(
                "DPO needs two candidates of a query to compare, but sample.num_samples is "
                f"{self.sample.num_samples}. Set it to 2 or more (the paper's is 50), or train RSFT alone: "
                "models: [rsft] and align: {stages: [rsft]}."
            )
        wants = {"union", "best_of_n", "filtered"} & set(self.evaluate.systems)
        if wants and self.sample.num_samples < 2:
            raise ValueError(
                f"evaluate.systems names {', '.join(sorted(wants))}, made of several candidates of a query, but "
                f"sample.num_samples is {self.sample.num_samples}"
            )
        there = self.queries.datasets("test")
        for pool, members in self.evaluate.pools.items():
            if unknown := sorted(set(members) - set(there)):
                raise ValueError(
                    f"evaluate.pools.{pool} names {', '.join(unknown)}; queries.test has {', '.join(there)}"
                )
            if pool in there:
                raise ValueError(f"evaluate.pools.{pool} has the name of a test set: give it another one")
        if self.prefer.reward == "ndcg" and self.rank.ndcg_at is None:
            raise ValueError("prefer.reward is ndcg, which nobody computes: set rank.ndcg_at (10 is usual)")
        return self

    def seeded(self, number: int) -> "PipelineConfig":
        """The same for the training seed of this number; see `evaluate.seeds`."""
        anew = 0 < number == self.evaluate.seeds - 1
        return self.model_copy(
            update={
                "align": self.align.model_copy(update={"seed": self.align.seed + number}),
                "sample": self.sample.model_copy(update={"seed": self.sample.seed + anew}),
            }
        )

    @property
    def run_dir(self) -> Path:
        return self.runs_dir / self.name

    @property
    def given_index(self) -> IndexConfig:
        """`index`, with the path of the corpus' own where that is read from one: its artifact says where that lay."""
        if self.index.path is None and isinstance(self.corpus, AnseriniCorpus):
            return self.index.model_copy(update={"path": self.corpus.path})
        return self.index

    @property
    def sample_prompt(self) -> str | PromptConfig:
        return self.prompt if self.sample.prompt is None else self.sample.prompt


def _run_name(stem: str) -> str:
    """A file's name as a run's: letters without their accents, digits, and one - for whatever else stands there."""
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-") or "run"


def limited(config: PipelineConfig, number: int) -> PipelineConfig:
    """The same with at most `number` queries of each source; a synthetic one is asked for as many."""

    def fewer(sources: Any) -> Any:
        if isinstance(sources, tuple):
            return tuple(map(fewer, sources))
        if sources is None:
            return None
        key = "number" if isinstance(sources, SyntheticQueries) else "limit"
        return sources.model_copy(update={key: min(getattr(sources, key) or number, number)})

    update = {name: fewer(getattr(config.queries, name)) for name in (*SPLITS, "all")}
    return config.model_copy(update={"queries": config.queries.model_copy(update=update)})


def _override(tree: dict[str, Any], assignment: str) -> None:
    key, sign, value = assignment.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {assignment!r}: write it as key.path=value, for instance --set align.dpo.beta=0.3")
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {assignment!r}: {part!r} is a value, it has no keys below it")
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {assignment!r}: the value is not YAML: {' '.join(str(error).split())}") from None


def _absolute(config: PipelineConfig, base_dir: Path) -> PipelineConfig:
    """Paths made absolute: a Ray job's working directory is a copy that vanishes."""

    def fix(value: Any) -> Any:
        if isinstance(value, Path):
            return Path(base_dir, value.expanduser()).resolve()
        if isinstance(value, tuple):
            return tuple(map(fix, value))
        if isinstance(value, ModelConfig):
            return value.model_copy(update={"source": local(value.source)})
        if isinstance(value, Config):
            update = {name: fix(getattr(value, name)) for name in type(value).model_fields}
            # A dataset that was saved has its directory where others have their id.
            if isinstance(value, FromHub) and Path(base_dir, value.id).is_dir():
                update["id"] = str(fix(Path(value.id)))
            return value.model_copy(update=update)
        return value

    def local(source: str) -> str:
        return str(fix(Path(source))) if is_path(source, base_dir) else source

    fixed: PipelineConfig = fix(config)
    return fixed


def is_file(name: str) -> bool:
    """Whether `--config` names a file, not a preset."""
    return name.endswith((".yaml", ".yml"))


def own_directory(name: str) -> Path:
    """Where relative paths begin: the directory of the file that `--config` names; for a preset, where you are."""
    return Path(name).absolute().parent if is_file(name) else Path.cwd()


def load_config(name: str, overrides: Sequence[str] = (), base_dir: Path | None = None) -> PipelineConfig:
    """Read a preset by name or a YAML file by its path. Paths in it, and in `overrides`, are below `base_dir`.

    Where no `base_dir` is given, it is `own_directory`. Raises ConfigError that names the key, the value and what is
    allowed.
    """
    base_dir = Path(base_dir or own_directory(name)).resolve()
    path = Path(name).absolute() if is_file(name) else PRESETS / f"{name}.yaml"
    if not path.exists():
        presets = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        meant = nearest(name, presets.split(", "))
        raise ConfigError(
            f"--config {name}: {path} does not exist.{meant} Give a YAML file, or one of the presets: {presets}."
        )
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values at its top level, not {type(tree).__name__}")
    tree.setdefault("name", _run_name(path.stem))
    for assignment in overrides:
        _override(tree, assignment)
    try:
        return _absolute(PipelineConfig.model_validate(tree), base_dir)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, PipelineConfig)}") from None
