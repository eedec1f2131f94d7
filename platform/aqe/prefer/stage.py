"""The stage that prefers: samples and ranks -> RSFT and DPO sets, on a pool of CPU actors."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from aqe.artifact import GROUP_ROWS, Artifact, Slices, read_parquet
from aqe.base_model import LanguageModel
from aqe.compose import repeats
from aqe.config.rank import PreferConfig
from aqe.config.sample import PromptConfig
from aqe.endings import taught_end
from aqe.errors import ArtifactError, InputError
from aqe.nodes import on_node
from aqe.pools import run_units
from aqe.prefer.candidates import Prompt, RankedQuery, ranked_query
from aqe.prefer.diversity import collapse_warning, diversity, diversity_counts
from aqe.prefer.pairs import dpo_rows
from aqe.prefer.reader import PreferenceReader
from aqe.prefer.reward import by_reciprocal_rank
from aqe.prefer.select import random_row, rsft_row
from aqe.prompts import load_tokenizer, render, token_ids
from aqe.records import DPO, RSFT
from aqe.run import Run
from aqe.storage import put
from aqe.units import Pool, Result, Row, Work, check_complete, cut_units, with_files

_SETS = {"rsft": RSFT, "rsft_random": RSFT, "dpo": DPO}
#: What one query gives: a target or none, a random one, and its pairs. Made into one file of each at the end.
_GIVEN = pa.schema([("rsft", pa.struct(RSFT)), ("rsft_random", pa.struct(RSFT)), ("dpo", pa.list_(pa.struct(DPO)))])
#: Raise it when candidates of the same ranks are ordered otherwise than before.
ORDER = 3
#: How many rows of each the units counted.
_COUNTED = {"rsft": "rsft_rows", "rsft_random": "rsft_random_rows", "dpo": "dpo_pairs"}
#: What targets and pairs look like: counts.
_SHAPES = ("rsft_repeating", "chosen_repeating", "rejected_repeating", "chosen_truncated", "rejected_truncated")


def build_preferences(
    run: Run,
    config: PreferConfig,
    *,
    prompt: PromptConfig,
    model: LanguageModel,
    judged: Artifact,
    samples: Artifact,
    ranks: Artifact,
) -> Artifact:
    """rsft.parquet and rsft_random.parquet (records.RSFT), dpo.parquet (records.DPO), in the order of `judged`.

    More than six arguments, because three stages before it meet here. `prompt` is the one that trains, `model` the one
    whose tokens are trained. The statistics say how many queries gave a target and a pair, what the best
    candidate gains over the plain query, and how diverse the candidates are. InputError when no query has candidates
    and ranks.
    """

    def build(out: Path) -> dict[str, Any]:
        queries = judged.path / "queries.parquet"
        total = len(Slices(queries))
        units = with_files(cut_units(total, ranks.stats["queries_per_unit"]), "samples", samples)
        reads = (queries, samples.path / "data", ranks.path / "data")
        work = Work(
            PreferWorker,
            {"config": config, "prompt": prompt, "model_path": model.path},
            PreferenceReader(*reads),
            _GIVEN,
            quick=True,
            reads=reads,
        )
        nodes = run.nodes("cpu")
        pool = Pool(sum(nodes.cpus), num_cpus=0.9, labels=nodes.labels)
        units = with_files(units, "ranks", ranks)
        counts = run_units(run, "build_preferences", out, units, work, pool)
        check_complete("build_preferences", counts, ranks)
        stats = _statistics(counts, total)
        # Rows stay in the workers here, too.
        rows = on_node(nodes, gather, out, [unit.name for unit in units])
        if rows != {name: stats[count] for name, count in _COUNTED.items()}:
            raise ArtifactError(
                f"{out / 'data'} holds {rows}, not what its units counted. Run again: it is made again."
            )
        shutil.rmtree(out / "data")
        _tell(run, out, stats)
        return stats

    return run.make(
        "build_preferences",
        config={"prefer": config.model_dump(), "prompt": prompt.model_dump(), "order": ORDER},
        inputs={"samples": samples, "ranks": ranks},
        parents=(judged,),
        build=build,
    )


class PreferWorker:
    """A unit's targets and pairs."""

    def __init__(self, config: PreferConfig, prompt: PromptConfig, model_path: Path) -> None:
        self._config, self._prompt = config, prompt
        self._tokenizer = load_tokenizer(model_path)
        self._end = taught_end(self._tokenizer, prompt)

    def __call__(self, rows: Sequence[Row]) -> Result:
        given: list[dict[str, Any]] = []
        dead: list[tuple[Row, str]] = []
        counts: Counter[str] = Counter()
        for row in rows:
            try:
                ranked = ranked_query(row, self._prompt_of(row["query"]), self._config)
                target, pairs = rsft_row(ranked, self._config), dpo_rows(ranked, self._config)
                any_one = random_row(ranked, self._config)
                counts.update(_counts(ranked, target, pairs))  # type: ignore[arg-type]
            except Exception as error:
                dead.append((row, f"{type(error).__name__}: {error}"))
                continue
            given.append({"rsft": target, "rsft_random": any_one, "dpo": pairs})
            counts["rsft_rows"] += target is not None
            counts["rsft_random_rows"] += any_one is not None
            counts["dpo_pairs"] += len(pairs)
            counts["queries_with_pair"] += bool(pairs)
        return Result(pa.Table.from_pylist(given, schema=_GIVEN), dead, dict(counts))

    def _prompt_of(self, query: str) -> Prompt:
        text = render(self._prompt, query, self._tokenizer)
        return Prompt(text, tuple(token_ids(self._tokenizer, text)), self._end)


def _counts(
    ranked: RankedQuery, target: Mapping[str, Any] | None, pairs: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """What a query adds to the means over all."""
    plain, *own = [by_reciprocal_rank(c.rank, c.found, c.ndcg) for c in (ranked.plain, *ranked.sampled)]
    return {
        "queries": 1,
        "plain_mrr": plain,
        "candidate_mrr": float(np.mean(own)),
        "best_mrr": max(own),
        "best_beats_plain": int(max(own) > plain),
        # Texts that go round in circles, on either side: what is commoner among the chosen is learnt.
        "rsft_repeating": int(target is not None and repeats(target["completion"]) > 0),
        "chosen_repeating": sum(repeats(pair["chosen"]) > 0 for pair in pairs),
        "rejected_repeating": sum(repeats(pair["rejected"]) > 0 for pair in pairs),
        "chosen_truncated": sum(not pair["chosen_finished"] for pair in pairs),
        "rejected_truncated": sum(not pair["rejected_finished"] for pair in pairs),
        **diversity_counts([candidate.expansion for candidate in ranked.sampled]),
    }


def _statistics(counts: Mapping[str, Any], total: int) -> dict[str, Any]:
    """Of all queries: counts, means of what the pool has added up, and its own cost."""
    queries = int(counts.get("queries", 0))
    if not queries:
        raise InputError(
            f"none of the {total} training queries has candidates and ranks: see the dead letters of the stages before."
        )
    means = ("plain_mrr", "candidate_mrr", "best_mrr", "best_beats_plain")
    cost = ("cpu_hours", "gpu_hours", "busy_seconds", "workers", "dead", "units", "queries_per_unit", "phases")
    return {
        "queries": queries,
        "queries_without_candidates": total - queries,
        **{name: int(counts[name]) for name in ("rsft_rows", "rsft_random_rows", "dpo_pairs", "queries_with_pair")},
        **{name: int(counts[name]) for name in _SHAPES},
        **{name: round(counts[name] / queries, 5) for name in means},
        **diversity(counts),
        **{name: counts[name] for name in cost},
    }


def gather(out: Path, units: Sequence[str]) -> dict[str, int]:
    """Put what the units gave into one file of each set, in their order; returns the rows of each."""
    files = [out / "data" / f"{unit}.parquet" for unit in units]
    return {name: _gather(files, name, schema, out / f"{name}.parquet") for name, schema in _SETS.items()}


def _gather(files: Sequence[Path], name: str, schema: pa.Schema, path: Path) -> int:
    """Write one column of all units as rows of its own. Memory holds some units at a time."""

    def write(part: Path) -> None:
        waiting = [schema.empty_table()]
        with pq.ParquetWriter(part, schema) as writer:
            for file in files:
                column = read_parquet(file)[name].combine_chunks()
                rows = pc.list_flatten(column) if name == "dpo" else column.drop_null()
                waiting.append(pa.Table.from_arrays(rows.flatten(), schema=schema))
                if sum(table.num_rows for table in waiting) >= GROUP_ROWS:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = [schema.empty_table()]
            writer.write_table(pa.concat_tables(waiting))

    put(path, write)
    return int(pq.read_metadata(path).num_rows)


def _tell(run: Run, out: Path, stats: Mapping[str, Any]) -> None:
    run.note(
        out,
        "build_preferences",
        f"{stats['queries_with_pair']} of {stats['queries']} queries gave a pair, "
        f"{stats['rsft_rows']} a target; the best candidate beats the plain query on "
        f"{100 * stats['best_beats_plain']:.0f} % of them (MRR {stats['plain_mrr']:.3f} -> {stats['best_mrr']:.3f}); "
        f"mean cosine of candidates {_shown(stats['mean_pairwise_cosine'])}, distinct-1 {_shown(stats['distinct_1'])}",
    )
    if warning := collapse_warning(stats):
        run.say(f"WARNING: {warning}")


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
