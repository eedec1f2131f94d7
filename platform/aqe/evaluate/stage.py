"""The stage of controls: the best prompt and the best length on dev, the best of n candidates."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aqe.artifact import Artifact, Slices, read_parquet, write_parquet
from aqe.compose import distinct_words
from aqe.config.rank import PreferConfig
from aqe.errors import InputError
from aqe.evaluate.choice import Choice
from aqe.evaluate.expansions import cut
from aqe.evaluate.filter import Filter, choose_by_filter
from aqe.evaluate.measures import reciprocal_rank, shown_ranks
from aqe.prefer.candidates import Prompt, ranked_query
from aqe.prefer.reader import PreferenceReader
from aqe.rank.retriever import Retriever
from aqe.rank.stage import rank_expansions
from aqe.records import EXPANSIONS, table
from aqe.run import Run
from aqe.units import cut_units, with_files

#: Raise it when expansions that are made from others come out otherwise than before.
VERSION = 3


def choose_prompt(run: Run, retriever: Retriever, *, judged: Artifact, greedy: Mapping[str, Artifact]) -> Choice:
    """The prompt whose greedy expansions (by its name) rank best."""
    variants = _derived(
        run,
        "expansions_dev_prompts",
        {"prompts": list(greedy)},
        greedy,
        judged,
        lambda: [
            {"qid": qid, "sample_idx": i, "expansion": text}
            for i, expansions in enumerate(greedy.values())
            for qid, text in texts(expansions).items()
        ],
    )
    ranks = rank_expansions(run, retriever, judged=judged, samples=variants, stage="rank_dev_prompts")
    return _choice(list(greedy), ranks)


def choose_cut(
    run: Run, retriever: Retriever, words: Sequence[int], *, judged: Artifact, expansions: Artifact
) -> Choice:
    """The number of words of these expansions that ranks best."""
    distinct = retriever.config.distinct_words
    variants = _cut(run, "expansions_dev_cuts", words, distinct, judged, expansions, note(expansions))
    ranks = rank_expansions(run, retriever, judged=judged, samples=variants, stage="rank_dev_cuts")
    return _choice([str(count) for count in words], ranks)


def _choice(names: Sequence[str], ranks: Artifact) -> Choice:
    """By MRR over all queries; a variant is a candidate, numbered in the order of `names`."""
    data = ranks.read()
    index, score = data["sample_idx"].to_numpy(), data["score"].to_numpy()
    values = reciprocal_rank(shown_ranks(data["gold_rank"].to_numpy(), score > 0))
    tried = {name: round(float(np.mean(values[index == i])), 5) for i, name in enumerate(names)}
    return Choice(tried, max(tried, key=tried.__getitem__))


def cut_expansions(run: Run, words: int, distinct: bool, *, judged: Artifact, expansions: Artifact) -> Artifact:
    """The same expansions cut to so many words (records.EXPANSIONS)."""
    about = f"{note(expansions)}, {words} words"
    return _cut(run, f"expansions_{_split(judged)}_cut", [words], distinct, judged, expansions, about)


def _cut(
    run: Run, stage: str, words: Sequence[int], distinct: bool, judged: Artifact, expansions: Artifact, about: str
) -> Artifact:
    """The same expansions cut to each of these numbers of words, numbered in their order."""
    return _derived(
        run,
        stage,
        {"words": list(words), "distinct": distinct},
        {"expansions": expansions},
        judged,
        lambda: [
            {"qid": qid, "sample_idx": i, "expansion": cut(text, count, distinct)}
            for i, count in enumerate(words)
            for qid, text in texts(expansions).items()
        ],
        seconds_per_query=seconds_per_query(expansions),
        note=about,
    )


def choose_union(
    run: Run, retriever: Retriever, counts: Sequence[int], *, judged: Artifact, samples: Artifact
) -> Choice:
    """The number of candidates whose words together rank best, on queries that have candidates."""
    variants = _unions(run, "expansions_train_unions", counts, judged, samples, note(samples))
    ranks = rank_expansions(run, retriever, judged=judged, samples=variants, stage="rank_train_unions")
    return _choice([str(count) for count in counts], ranks)


def union(run: Run, count: int, *, judged: Artifact, samples: Artifact) -> Artifact:
    """The words of the first `count` candidates of each query in one expansion: sampling in place of choosing."""
    about = f"{note(samples)}, the words of {count} candidates"
    return _unions(run, f"expansions_{_split(judged)}_union", [count], judged, samples, about)


def _unions(run: Run, stage: str, counts: Sequence[int], judged: Artifact, samples: Artifact, about: str) -> Artifact:
    """The different words of the first candidates, for each number of them, numbered in their order."""

    def rows() -> list[dict[str, Any]]:
        drawn = _candidates(samples)
        return [
            {"qid": qid, "sample_idx": i, "expansion": distinct_words(" ".join(own[:count]))}
            for i, count in enumerate(counts)
            for qid, own in drawn.items()
        ]

    total = samples.manifest["config"]["num_samples"]
    seconds = seconds_per_query(samples) * min(max(counts), total) / total
    config = {"candidates": list(counts)}
    return _derived(run, stage, config, {"samples": samples}, judged, rows, seconds_per_query=seconds, note=about)


def _candidates(samples: Artifact) -> dict[str, list[str]]:
    """qid -> its candidates in the order in which they were drawn."""
    drawn: dict[str, list[str]] = {}
    columns = samples.read().select(["qid", "sample_idx", "expansion"]).sort_by("sample_idx")
    for qid, text in zip(columns["qid"].to_pylist(), columns["expansion"].to_pylist(), strict=True):
        drawn.setdefault(qid, []).append(text)
    return drawn


def filtered(run: Run, trained: Filter, *, judged: Artifact, samples: Artifact) -> Artifact:
    """Of each query the candidate that a trained reranker puts first."""

    def rows() -> list[dict[str, Any]]:
        queries = read_parquet(judged.path / "queries.parquet")
        texts = dict(zip(queries["qid"].to_pylist(), queries["text"].to_pylist(), strict=True))
        drawn = _candidates(samples)
        asked = [{"qid": qid, "query": texts[qid], "expansions": own} for qid, own in drawn.items()]
        return [
            {"qid": qid, "sample_idx": 0, "expansion": text}
            for qid, text in choose_by_filter(run, trained, asked).items()
        ]

    return _derived(
        run,
        f"expansions_{_split(judged)}_filtered",
        {},
        {"samples": samples, "filter": trained.artifact},
        judged,
        rows,
        seconds_per_query=seconds_per_query(samples),
        note=f"{samples.manifest['config']['num_samples']} candidates, one chosen by a filter trained on "
        f"{trained.artifact.stats['pairs']:,} pairs; the filter's own time is not counted",
    )


def best_of_n(run: Run, *, judged: Artifact, samples: Artifact, ranks: Artifact) -> Artifact:
    """The best-ranked candidate of each query: what a perfect choice among n would give."""

    def rows() -> list[dict[str, Any]]:
        queries = judged.path / "queries.parquet"
        read = PreferenceReader(queries, samples.path / "data", ranks.path / "data")
        # Nothing is trained on these, and what training prefers among equals, or calls equal, does not matter.
        unprompted, config = Prompt("", (), 0), PreferConfig()
        units = cut_units(len(Slices(queries)), ranks.stats["queries_per_unit"])
        best = []
        for unit in with_files(with_files(units, "samples", samples), "ranks", ranks):
            for row in read(unit):
                first = ranked_query(row, unprompted, config).best_first()[0]
                best.append({"qid": row["qid"], "sample_idx": 0, "expansion": first.expansion})
        return best

    return _derived(
        run,
        f"expansions_{_split(judged)}_best_of_n",
        {},
        {"samples": samples, "ranks": ranks},
        judged,
        rows,
        seconds_per_query=seconds_per_query(samples),
        note=f"{samples.manifest['config']['num_samples']} candidates, the best chosen by its true rank",
    )


def _derived(
    run: Run,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    judged: Artifact,
    rows: Callable[[], list[dict[str, Any]]],
    **stats: Any,
) -> Artifact:
    """Expansions that are made from others (records.EXPANSIONS), in one file for all queries of `judged`."""

    def build(out: Path) -> dict[str, Any]:
        expansions = table(rows(), EXPANSIONS)
        write_parquet(expansions, out / "data" / "00000.parquet")
        expanded = set(expansions["qid"].to_pylist())
        qids = read_parquet(judged.path / "queries.parquet")["qid"].to_pylist()
        # Those that no unit covers come last: only the first queries are sampled for the oracle.
        last = max((i for i, qid in enumerate(qids) if qid in expanded), default=None)
        if last is None:
            raise InputError(f"{stage}: no query has an expansion: see the dead letters of the stage before.")
        counts = {"rows_in": len(expanded), "dead": 0, "units": 1, "queries_per_unit": last + 1}
        return {"expansions": expansions.num_rows, **counts, **stats}

    inputs = {**inputs, "qrels": judged}
    return run.make(stage, config={**config, "version": VERSION}, inputs=inputs, build=build)


def _split(judged: Artifact) -> str:
    return str(judged.manifest["config"]["split"])


def texts(expansions: Artifact) -> dict[str, str]:
    """qid -> its one expansion."""
    data = expansions.read()
    return dict(zip(data["qid"].to_pylist(), data["expansion"].to_pylist(), strict=True))


def seconds_per_query(expansions: Artifact) -> float:
    """Seconds that one worker took to write a query's expansion (or its candidates), in batches."""
    stats = expansions.stats
    known = stats.get("seconds_per_query")
    return float(stats["busy_seconds"] / max(stats["rows_in"], 1) if known is None else known)


def finished(expansions: Artifact) -> float | None:
    """Share of the answers that ended by themselves, in place of at the token limit; None where others were cut."""
    stats = expansions.stats
    return 1 - stats["truncated"] / stats["candidates"] if stats.get("candidates") else None


def note(expansions: Artifact) -> str:
    """Where expansions come from, in a few words."""
    return str(expansions.stats.get("note") or f"prompt {expansions.manifest['config']['prompt']['name']}")
