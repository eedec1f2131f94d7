"""Generate, then filter: n candidates, one of them chosen by a reranker that was trained on the same exact ranks.

As EAR-RI (arXiv 2305.17080): the reranker reads `query ? expansion` alone. Where that one is a DeBERTa, ours is the
base model with a head for one score, trained by TRL on pairs of candidates (Bradley and Terry).
"""

import hashlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aqe.align.deepspeed import worker_env
from aqe.artifact import Artifact, Slices, verify
from aqe.base_model import LanguageModel
from aqe.compose import compose
from aqe.config.rank import PreferConfig
from aqe.errors import ConfigError, InputError
from aqe.evaluate.choice import Choice
from aqe.evaluate.measures import reciprocal_rank, shown_ranks
from aqe.nodes import on_node
from aqe.prefer.candidates import Candidate, Prompt, RankedQuery, ranked_query
from aqe.prefer.reader import PreferenceReader
from aqe.run import Run
from aqe.storage import put
from aqe.units import Row, cut_units, with_files

#: Whose version changes what is trained.
PACKAGES = ("torch", "transformers", "trl")
#: Raise it when the same candidates train another filter than before.
VERSION = 1
#: Pairs of a training query: the best candidate against the worst, the second best against the second worst, ... As
#: many as DPO has by default.
PAIRS = 1
#: Tokens of what it reads; more are cut, as in EAR.
TOKENS = 64
#: Tried, each for one pass over the pairs; the best on training queries that are kept apart is taken.
LEARNING_RATES = (1e-5, 5e-5)
BATCH = 16
#: One training query in so many is kept apart to choose by.
KEPT_APART = 10


@dataclass(frozen=True)
class Filter:
    """A trained reranker."""

    artifact: Artifact

    @property
    def choice(self) -> Choice:
        """Learning rates that were tried: MRR of what each chooses for the training queries that were kept apart."""
        return Choice(self.artifact.stats["tried"], self.artifact.stats["chosen"])


def train_filter(
    run: Run,
    config: PreferConfig,
    seed: int,
    *,
    judged: Artifact,
    samples: Artifact,
    ranks: Artifact,
    model: LanguageModel,
) -> Filter:
    """The reranker, in `model/`, trained on the candidates of the training queries and their ranks.

    More than six arguments, because three stages before it meet here.
    """
    # Of what the policy prefers the reward alone matters: which pairs are made is decided here.
    prefer = PreferConfig(reward=config.reward, depth=config.depth)

    def build(out: Path) -> dict[str, Any]:
        nodes = run.nodes("gpu")
        use_gpu = nodes.gpus > 0
        source = _Source(judged.path / "queries.parquet", samples, ranks, prefer)
        run.note(out, "train_filter", f"{len(LEARNING_RATES)} learning rates, one pass over the pairs each")
        env, started = _env(use_gpu, nodes.cpus), time.monotonic()
        args = (source, str(model.path), out / "model", LEARNING_RATES, seed, use_gpu)
        stats: dict[str, Any] = on_node(nodes, _fit, *args, env=env, gpu=use_gpu)
        hours = (time.monotonic() - started) / 3600
        threads = 1 if use_gpu else min(nodes.cpus)
        return {**stats, "cpu_hours": round(hours * threads, 5), "gpu_hours": round(hours * use_gpu, 5)}

    settings = {"pairs": PAIRS, "tokens": TOKENS, "learning_rates": LEARNING_RATES, "batch": BATCH, "seed": seed}
    artifact = run.make(
        "train_filter",
        config={**settings, "prefer": prefer.model_dump(), "version": VERSION},
        inputs={"samples": samples, "ranks": ranks, "model": model.fingerprint},
        parents=(judged,),
        packages=PACKAGES,
        build=build,
    )
    return Filter(artifact)


def choose_by_filter(run: Run, trained: Filter, queries: Sequence[Row]) -> dict[str, str]:
    """qid -> the candidate with the highest score, of rows with qid, query and `expansions`."""
    nodes = run.nodes("gpu")
    use_gpu = nodes.gpus > 0
    pairs = [(row["query"], expansion) for row in queries for expansion in row["expansions"]]
    model = str(trained.artifact.path / "model")
    values: list[float] = on_node(nodes, _score, model, pairs, use_gpu, env=_env(use_gpu, nodes.cpus), gpu=use_gpu)
    left = iter(values)
    chosen = {}
    for row in queries:
        own = [next(left) for _ in row["expansions"]]
        chosen[row["qid"]] = row["expansions"][int(np.argmax(own))]
    return chosen


def _env(use_gpu: bool, cpus: Sequence[int]) -> dict[str, str]:
    return worker_env(use_gpu, min(cpus))


class Apart(NamedTuple):
    """A training query that is kept apart: its candidates, each with its rank and whether it finds a passage."""

    query: str
    candidates: list[tuple[str, int, bool]]


@dataclass(frozen=True)
class _Source:
    """Where training queries with candidates and ranks lie."""

    queries: Path
    samples: Artifact
    ranks: Artifact
    config: PreferConfig

    def read(self) -> Iterator[tuple[str, RankedQuery]]:
        """(query, its ranked candidates) of all queries that have some, one after the other."""
        files = (self.queries, self.samples.path / "data", self.ranks.path / "data")
        for path in files:
            verify(path, patient=True)
        read = PreferenceReader(*files)
        units = cut_units(len(Slices(self.queries)), self.ranks.stats["queries_per_unit"])
        units = with_files(with_files(units, "samples", self.samples), "ranks", self.ranks)
        # The policy's model is not trained on these: they need no prompt.
        unprompted = Prompt("", (), 0)
        for unit in units:
            for row in read(unit):
                yield row["query"], ranked_query(row, unprompted, self.config)


def _kept_apart(qid: str) -> bool:
    return int(hashlib.md5(qid.encode()).hexdigest()[-8:], 16) % KEPT_APART == 0


def _fit(source: _Source, model: str, out: Path, rates: Sequence[float], seed: int, use_gpu: bool) -> dict[str, Any]:
    """Train with each learning rate, keep the best at `out`. Runs as a task, in a process of its own."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, PrinterCallback
    from transformers.utils import logging
    from trl import RewardConfig, RewardTrainer

    # That the head for scores is new is known.
    logging.set_verbosity_error()
    tokenizer = _tokenizer(model)
    rows, apart = [], []
    for query, own in source.read():
        if _kept_apart(own.qid):
            apart.append(Apart(query, [(c.expansion, c.rank, c.found) for c in own.sampled]))
        else:
            for better, worse in _pairs(own):
                both = (_ids(tokenizer, _text(query, candidate.expansion)) for candidate in (better, worse))
                rows.append(dict(zip(("chosen_ids", "rejected_ids"), both, strict=True)))
    if not rows or not apart:
        raise InputError(
            f"filtered: {len(rows)} pairs to train the filter on and {len(apart)} queries to choose by; it needs some "
            "of both. Sample more candidates of more queries, or leave it out of evaluate.systems."
        )
    tried: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="aqe_filter_") as scratch:
        for rate in rates:
            torch.manual_seed(seed)
            reranker = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
            reranker.config.pad_token_id = tokenizer.pad_token_id
            args = RewardConfig(
                output_dir=scratch, learning_rate=rate, num_train_epochs=1, per_device_train_batch_size=BATCH,
                warmup_steps=0.05, max_length=None, bf16=use_gpu, use_cpu=not use_gpu, report_to="none",
                save_strategy="no", logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
                dataloader_pin_memory=use_gpu, seed=seed,
            )  # fmt: skip
            trainer = RewardTrainer(
                model=reranker, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            mrr = round(_mrr(reranker, tokenizer, apart), 5)
            if not tried or mrr > max(tried.values()):
                put(out, partial(_save, reranker, tokenizer))
            tried[f"learning rate {rate:g}"] = mrr
    steps = -(-len(rows) // BATCH)
    best = max(tried, key=tried.__getitem__)
    return {"pairs": len(rows), "steps": steps, "kept_apart": len(apart), "tried": tried, "chosen": best}


def _pairs(ranked: RankedQuery) -> list[tuple[Candidate, Candidate]]:
    """At most PAIRS of what the model said: best and worst, second best and second worst."""
    best = [c for c in ranked.best_first() if c in ranked.sampled]
    worst = [c for c in ranked.worst_first() if c in ranked.sampled]
    return [(a, b) for a, b in zip(best[:PAIRS], worst, strict=False) if ranked.value(a) > ranked.value(b)]


def _save(reranker: Any, tokenizer: Any, part: Path) -> None:
    reranker.save_pretrained(part)
    tokenizer.save_pretrained(part)


def _mrr(reranker: Any, tokenizer: Any, apart: Sequence[Apart]) -> float:
    """Of the candidates that the reranker chooses."""
    pairs = [(query, text) for query, candidates in apart for text, _, _ in candidates]
    left = iter(scores(reranker, tokenizer, pairs))
    chosen = []
    for _, candidates in apart:
        values = [next(left) for _ in candidates]
        chosen.append(candidates[int(np.argmax(values))])
    shown = shown_ranks(np.array([rank for _, rank, _ in chosen]), np.array([found for _, _, found in chosen]))
    return float(reciprocal_rank(shown).mean())


def _score(model: str, pairs: Sequence[tuple[str, str]], use_gpu: bool) -> list[float]:
    """Scores by the reranker at `model`. Runs as a task."""
    reranker, tokenizer = load_filter(model)
    return scores(reranker.to("cuda") if use_gpu else reranker, tokenizer, pairs)


def load_filter(model: str) -> tuple[Any, Any]:
    """A trained reranker and its tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification

    verify(Path(model), patient=True)
    return AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32), _tokenizer(model)


def scores(reranker: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """One score for each (query, expansion), in their order; texts of like length go together."""
    import torch

    ids = [_ids(tokenizer, _text(query, expansion)) for query, expansion in pairs]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found = [0.0] * len(ids)
    reranker.eval()
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            width = max(len(ids[i]) for i in batch)
            padded = [ids[i] + [tokenizer.pad_token_id] * (width - len(ids[i])) for i in batch]
            mask = [[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in batch]
            device = reranker.device
            # The head reads the last token that is no padding.
            out = reranker(torch.tensor(padded, device=device), attention_mask=torch.tensor(mask, device=device)).logits
            for i, score in zip(batch, out[:, 0].float().tolist(), strict=True):
                found[i] = score
    return found


def _text(query: str, expansion: str) -> str:
    return compose(query, " ".join(expansion.split()))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"][:TOKENS])


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_filter(model: Path) -> None:
    """ConfigError when transformers has no class with a head for scores for this model."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(model)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ConfigError(
            f"evaluate.systems names filtered, but transformers cannot put a head for scores onto a model of the type "
            f"{config.model_type}. Leave filtered out, or name another model."
        )
