"""The stages that make synthetic queries: passages -> what the model writes -> queries -> those that are kept."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from aqe.artifact import GROUP_ROWS, Artifact, write_parquet
from aqe.base_model import LanguageModel
from aqe.config.sample import PASSAGE, EngineConfig, PromptConfig, SampleConfig
from aqe.config.sources import SPLITS, SYNTHETIC, Split
from aqe.config.splits import SplitsConfig
from aqe.corpus.contract import counted, letter
from aqe.corpus.rows import Flaw
from aqe.errors import InputError
from aqe.nodes import on_node
from aqe.prompts import resolve
from aqe.rank.retriever import Retriever
from aqe.rank.stage import search_expansions
from aqe.records import DEAD_LETTERS, JUDGED, QUERIES, table
from aqe.run import Run
from aqe.sample.stage import Generation, sample_expansions
from aqe.synthetic.cleaning import MAX_TOKENS, flaw, query_of, split_queries, training_flaw
from aqe.synthetic.passages import write_passages

#: Raise it when other passages are chosen, or other queries kept, than before.
VERSION = 1
#: Queries with their split, as they are searched.
DRAFTS = pa.schema([*JUDGED, ("key", pa.string())])


def asking(config: SplitsConfig, sample: SampleConfig, engine: EngineConfig) -> Generation:
    """How the model is asked: greedily, as in InPars."""
    prompt = resolve(next(iter(config.asked.values())).prompt, PASSAGE)
    return Generation.greedy(sample, engine, prompt, MAX_TOKENS)


def write_queries(
    run: Run,
    config: SplitsConfig,
    generation: Generation,
    retriever: Retriever,
    *,
    corpus: Artifact,
    model: LanguageModel,
) -> Artifact:
    """SPLIT/synthetic.parquet (records.QUERIES) of every split that has synthetic queries; each has its one passage.

    Training queries are those whose passage BM25 finds, but not first. dev and test keep all: there, a filter would
    choose what BM25 fails on.
    """
    passages = choose_passages(run, config, corpus=corpus)
    answers = sample_expansions(run, generation, judged=passages, model=model, stage="synthetic_sample")
    drafts = clean_queries(run, config, generation.prompt, passages=passages, answers=answers)
    found = search_expansions(run, retriever, judged=drafts, expansions=None, stage="synthetic_search")
    return keep_queries(run, config, drafts=drafts, found=found)


def choose_passages(run: Run, config: SplitsConfig, *, corpus: Artifact) -> Artifact:
    """queries.parquet (passages.ASKED): what the model is asked about, by a hash."""
    numbers = {key: source.number for key, source in config.asked.items()}

    def build(out: Path) -> Mapping[str, Any]:
        stats: dict[str, int] = on_node(run.nodes("cpu"), write_passages, out, corpus.path, numbers)
        few = "" if stats["passages"] == stats["wanted"] else f" of {stats['wanted']:,}: no more are long enough"
        run.note(out, "synthetic_passages", f"{stats['passages']:,} passages are asked for a query{few}")
        return stats

    return run.make(
        "synthetic_passages", config={"numbers": numbers, "version": VERSION}, inputs={"corpus": corpus}, build=build
    )


def clean_queries(
    run: Run, config: SplitsConfig, prompt: PromptConfig, *, passages: Artifact, answers: Artifact
) -> Artifact:
    """queries.parquet (DRAFTS): what can be a query, in its split; dead_letters.parquet says why others cannot."""
    shares = config.split

    def build(out: Path) -> Mapping[str, Any]:
        drafts, aside = [], []
        columns = ["qid", "raw", "expansion", "finish_reason"]
        written = {row["qid"]: row for row in answers.read().select(columns).to_pylist()}
        for passage in passages.read("queries").to_pylist():
            answer = written.get(passage["qid"])
            # One that could not be sampled is in the dead letters of that stage.
            if answer is not None:
                draft = {**passage, "text": query_of(answer["raw"], answer["expansion"])}
                why = flaw(draft["text"], answer["finish_reason"], prompt)
                drafts += [draft] if why is None else []
                aside += [] if why is None else [({**draft, "raw": answer["raw"]}, why)]
        kept, alike = split_queries(drafts, shares)
        reasons = _write_letters(out, "synthetic_drafts", [*aside, *alike])
        if not kept:
            raise InputError(
                f"queries: of {len(written):,} answers of the model none is a query: {reasons}. See {out}, and "
                "choose another `prompt` or model."
            )
        write_parquet(table(map(_judged, kept), DRAFTS), out / "queries.parquet", GROUP_ROWS)
        run.note(out, "synthetic_drafts", f"{len(kept):,} of {len(written):,} answers are queries{_said(reasons, out)}")
        return {"asked": len(written), "queries": len(kept), "set_aside": len(aside) + len(alike)}

    return run.make(
        "synthetic_drafts",
        config={"shares": None if shares is None else shares.model_dump(), "version": VERSION},
        inputs={"passages": passages, "answers": answers},
        build=build,
    )


def _judged(draft: Mapping[str, Any]) -> dict[str, Any]:
    own = {"positives": [draft["docid"]], "relevance": [1], "relevant": [draft["docid"]], "grades": [1]}
    return {**draft, **own, "answers": [], "excluded": [], "match": "dpr", "dataset": SYNTHETIC}


def keep_queries(run: Run, config: SplitsConfig, *, drafts: Artifact, found: Artifact) -> Artifact:
    """SPLIT/synthetic.parquet: all queries of dev and test, and the training queries that teach something."""
    depth = next(iter(config.asked.values())).depth
    splits = [split for split in SPLITS if config.synthetic(split)]

    def build(out: Path) -> Mapping[str, Any]:
        kept: dict[Split, list[Mapping[str, Any]]] = {split: [] for split in splits}
        aside: list[tuple[Mapping[str, Any], str]] = []
        own = Counter[str]()
        ranks = {row["qid"]: row for row in found.read().select(["qid", "gold_rank", "score"]).to_pylist()}
        for draft in drafts.read("queries").to_pylist():
            own[draft["key"]] += 1
            # One that could not be searched is in the dead letters of that stage.
            if (at := ranks.get(draft["qid"])) is None:
                continue
            why = training_flaw(at["gold_rank"], at["score"], depth) if draft["key"] == "train" else None
            if why is None:
                kept[draft["key"]].append(draft)
            else:
                aside.append(({**draft, "gold_rank": at["gold_rank"]}, why))
        reasons = _write_letters(out, "synthetic_queries", aside)
        for split, queries in kept.items():
            if not queries and not config.sources(split):
                raise InputError(
                    f"queries.{split}: no synthetic query is left of {own[split]:,}{_said(reasons, out)}. Ask for "
                    "more (`number`), or raise `depth`."
                )
            write_parquet(table(queries, QUERIES), out / split / f"{SYNTHETIC}.parquet")
            why = _said(reasons, out) if split == "train" else ""
            run.note(out, "synthetic_queries", f"{split}: {len(queries):,} kept{why}")
        return {**{split: len(queries) for split, queries in kept.items()}, "set_aside": len(aside)}

    return run.make(
        "synthetic_queries",
        config={"depth": depth, "version": VERSION},
        inputs={"drafts": drafts, "found": found},
        build=build,
    )


def _write_letters(out: Path, stage: str, aside: list[tuple[Mapping[str, Any], str]]) -> str:
    """Write out/dead_letters.parquet where there are any; returns how many there are of each reason."""
    (out / "dead_letters.parquet").unlink(missing_ok=True)
    if aside:
        letters = [letter(stage, draft["qid"], Flaw(why, dict(draft))) for draft, why in aside]
        write_parquet(table(letters, DEAD_LETTERS), out / "dead_letters.parquet")
    return counted(Counter(why for _, why in aside))


def _said(reasons: str, out: Path) -> str:
    return f"; set aside: {reasons}, see {out / 'dead_letters.parquet'}" if reasons else ""
