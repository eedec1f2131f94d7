"""What a run takes, told before it begins: counts that follow from the configuration, and hours at measured rates.

Counts are upper bounds: every query has a relevant passage, every candidate and every pair is as long as it may be, and
every synthetic query is kept.
"""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aqe.config.pipeline import RANDOM, PipelineConfig, every_stage
from aqe.config.sources import SPLITS, FileCorpus, LaidOutCorpus, Split
from aqe.corpus.queries import count
from aqe.synthetic.cleaning import MAX_TOKENS
from aqe.synthetic.passages import MOST_WORDS

#: Tokens of a prompt, the query in it: what the presets' prompts have. A guess for others.
PROMPT_TOKENS = 40
#: Tokens of a passage that is asked for a query, at two a word. The examples before it are computed once for all.
PASSAGE_TOKENS = 2 * MOST_WORDS
#: Floating-point operations a parameter and token of a training step, and the same of a pair with DPO's reference.
RSFT_OPERATIONS, DPO_OPERATIONS = 6, 2 * (6 + 2)


#: Bytes below `runs_dir` a byte of the passages' text: of the corpus, the Lucene index and the impact index; and of the
#: index with each passage's terms, which RM3 reads. Measured on 424,643 Wikipedia passages, with room for a second copy
#: of the largest while it is written.
STORED, STORED_FOR_RM3 = 1.7, 0.7
#: Bytes of a passage's text in a byte of a file that is compressed.
UNPACKED = 3.2
#: Bytes a parameter: of an aligned model, of the checkpoint of one in training (weights and Adam's two moments in
#: float32), and of its memory (gradients too).
WEIGHTS, CHECKPOINT, TRAINED = 4, 12, 16
_PACKED = {".gz", ".zst", ".bz2", ".zip", ".parquet"}
#: Bytes of a candidate with its rank, and of a query in a system's list of hits.
CANDIDATE_BYTES, HITS_BYTES = 600, 4_000
#: Bytes of memory that the processes of a run take beside a model: Ray, a search, the libraries of training.
BESIDE = 4_000_000_000


@dataclass(frozen=True)
class Machine:
    """How fast one accelerator, or one core, is with a model of any size: operations a second of generation (2 a
    parameter and token) and of training, and tokens a second of either at most, however small the model is.
    """

    name: str
    generation: float
    most_tokens: float
    training: float


#: An H100 as measured by `make bench-gpu` (docs/results/bench_gpu.json: 8.2 k tokens/s of 8 B parameters; 58 % of 789
#: TFLOP/s), and one core of the machine that docs/experiments.md is of (2026-11-29, float32, 135 M parameters: 140
#: tokens/s, and 96 of a training step, padding counted). Its most tokens/s, for smaller models, are a guess.
H100 = Machine("H100", 2 * 8_222 * 8.03e9, 19_400, 0.577 * 789e12)
CORE = Machine("core", 2 * 140 * 0.135e9, 1_000, 6 * 96 * 0.135e9)


@dataclass(frozen=True)
class Cost:
    """What a configuration asks for, at most."""

    queries: dict[str, int]
    """Of each split."""
    drawn: int
    """Candidates, each with its gold rank."""
    asked: int
    """Passages that are asked for a query."""
    generated: int
    """Tokens of candidates, greedy expansions and synthetic queries."""
    steps: dict[str, int]
    """Optimizer steps of RSFT (its control too) and DPO, over all seeds."""
    operations: float
    """Of all steps, a parameter."""
    parameters: int | None
    """Of the model; None where only its weights tell."""
    disk: int
    """Bytes below `runs_dir`, roughly; without those of models where their size is not known."""

    def hours(self, machine: Machine) -> tuple[float, float]:
        """Hours of one such machine: generation, training. Of a model of unknown size: not a number."""
        size = float("nan") if self.parameters is None else float(self.parameters)
        generated = min(machine.generation / 2 / size, machine.most_tokens)
        trained = min(machine.training / RSFT_OPERATIONS / size, machine.most_tokens)
        tokens = self.generated + self.asked * PASSAGE_TOKENS
        return tokens / generated / 3600, self.operations / RSFT_OPERATIONS / trained / 3600

    @property
    def memory(self) -> int:
        """Bytes that a node needs at least to train on its cores."""
        return BESIDE + TRAINED * (self.parameters or 0)

    def lines(self) -> Iterator[str]:
        """What a person reads."""
        yield ", ".join(f"{split} {number:,}" for split, number in self.queries.items()) + " queries at most"
        if self.asked:
            read = self.asked * PASSAGE_TOKENS
            yield f"synthetic: {self.asked:,} passages are asked for a query, {read:,} tokens to read at most"
        yield f"{self.drawn:,} candidates and as many gold ranks; {self.generated:,} tokens to generate at most"
        yield ", ".join(f"{kind.upper()} {number:,} steps" for kind, number in self.steps.items()) + " at most"
        if self.parameters is not None:
            for machine in (H100, CORE):
                generation, training = self.hours(machine)
                size = f"{self.parameters / 1e9:.2g} B parameters"
                hours = f"{rough(generation)} hours to generate, {rough(training)} to train"
                yield f"{size}, one {machine.name}: {hours}, at most"
        needed = f"{self.memory / 1e9:.0f} GB of memory or more"
        yield f"some {rough(self.disk / 1e9)} GB of disk; to train without a GPU {needed}"


def rough(hours: float) -> str:
    """Two digits of it."""
    return f"{float(f'{hours:.2g}'):,g}" if hours >= 0.1 else "less than 0.1"


def cost(config: PipelineConfig, parameters: int | None) -> Cost:
    """What a run of this configuration takes at most, counting the queries in its files (they are read once)."""
    queries: dict[str, int] = {split: _queries(config, split) for split in SPLITS}
    sample, evaluate, dpo = config.sample, config.evaluate, config.align.dpo
    # Candidates are drawn for the first seed, and anew for the last of several.
    draws = min(evaluate.seeds, 2)
    oracle = {"union", "filtered", "best_of_n"} & set(evaluate.systems)
    few = min(queries["test"], evaluate.oracle_queries or queries["test"]) if oracle else 0
    stages = {stage for model in config.models for stage in every_stage(model)}
    again = sum(stage.endswith("dpo") for stage in stages) * (dpo.rounds - (not dpo.on_policy))
    drawn = sample.num_samples * (draws * (queries["train"] + few) + evaluate.seeds * again * queries["train"])
    trained = len(config.models) + (RANDOM in evaluate.systems)
    prompts = 2 + len(evaluate.zero_shot_prompts)
    greedy = queries["test"] * (trained * evaluate.seeds + 2) + queries["dev"] * prompts
    limit = evaluate.max_tokens or sample.max_tokens
    steps, operations = _training(config, stages, queries["train"])
    asked = sum(source.number for source in config.queries.asked.values())
    generated = drawn * sample.max_tokens + greedy * limit + asked * MAX_TOKENS
    systems = len(evaluate.systems) + trained * evaluate.seeds
    models = 0 if parameters is None else parameters * (WEIGHTS * (len(stages) + 1) * evaluate.seeds + CHECKPOINT)
    disk = _text_bytes(config) * (STORED + STORED_FOR_RM3 * ("bm25_rm3" in evaluate.systems))
    disk += drawn * CANDIDATE_BYTES + queries["test"] * systems * HITS_BYTES + models
    return Cost(queries, drawn, asked, generated, steps, operations, parameters, int(disk))


def bytes_below(directory: Path) -> int:
    """Bytes of the files below a directory, but for what links lead to; 0 where it is not there."""
    total = 0
    for there, _, files in os.walk(directory):
        for name in files:
            # A process that works there may just have taken it away.
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(there, name)).st_size
    return total


def _text_bytes(config: PipelineConfig) -> float:
    """Bytes of the passages, roughly; 0 where they do not lie in files that are named."""
    if not isinstance(config.corpus, FileCorpus | LaidOutCorpus):
        return 0
    paths = config.corpus.paths if isinstance(config.corpus, FileCorpus) else (config.corpus.path,)
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size * (UNPACKED if file.suffix in _PACKED else 1) for file in files)


def _training(config: PipelineConfig, stages: Iterable[str], queries: int) -> tuple[dict[str, int], float]:
    """Steps of each kind over all seeds, and their operations a parameter."""
    seeds, tokens = config.evaluate.seeds, PROMPT_TOKENS + config.sample.max_tokens
    times = {
        "rsft": sum(stage.endswith("rsft") for stage in stages) + (RANDOM in config.evaluate.systems),
        "dpo": sum(stage.endswith("dpo") for stage in stages) * config.align.dpo.rounds,
    }
    rows = {"rsft": queries, "dpo": queries * config.prefer.pairs_per_query}
    each = {"rsft": RSFT_OPERATIONS, "dpo": DPO_OPERATIONS}
    settings = {"rsft": config.align.rsft, "dpo": config.align.dpo}
    steps, operations = {}, 0.0
    for kind, stage in settings.items():
        seen = rows[kind] * stage.epochs * times[kind] * seeds
        steps[kind] = -int(-seen // stage.batch_size)
        operations += seen * tokens * each[kind]
    return steps, operations


def _queries(config: PipelineConfig, split: Split) -> int:
    """Queries that a split may have."""
    total = sum(map(count, config.queries.sources(split)))
    asked, shares = config.queries.asked, config.queries.split
    if shares is None:
        return total + (asked[split].number if split in asked else 0)
    share: float = getattr(shares, split)
    return math.ceil(share * (total + (asked["all"].number if asked else 0)))
