"""All numbers of the table: systems, their paired differences, wins and losses, and what their expansions are like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aqe.config.evaluate import EvaluateConfig
from aqe.errors import InputError
from aqe.evaluate.expansions import diagnose
from aqe.evaluate.measures import MEASURES, per_query, shown_ranks
from aqe.evaluate.significance import (
    bootstrap_means,
    by_place,
    halvings,
    holm,
    interval,
    seed_weights,
    sign_flip_p,
    wins_losses_ties,
)

#: Rows of the table, in their order; a system of another name comes after them.
CONTROLS = (
    *("bm25", "bm25_tuned", "bm25_rm3"),
    *("zero_shot", "zero_shot_best", "zero_shot_cut", "union", "filtered", "rsft_random"),
)
ALIGNED = ("rsft", "dpo", "rsft_dpo")
ORDER = (*CONTROLS, *ALIGNED, "best_of_n")
#: a - b of every pair that is compared, where both are there.
PAIRS = (
    *((model, control) for model in ALIGNED for control in CONTROLS),
    *((control, "bm25") for control in CONTROLS[1:]),
    *((control, "bm25_tuned") for control in CONTROLS[2:]),
    ("rsft_dpo", "rsft"),
    ("rsft_dpo", "dpo"),
    *(("best_of_n", other) for other in ("bm25", "bm25_tuned", "filtered", "rsft_dpo")),
)
#: The measures that decide (docs/protocol.md).
DECIDING = ("mrr", "top_1")
#: What is said of a system's expansions.
DIAGNOSED = ("empty_share", "copied_share", "repeating_share", "mean_words", "leakage_share")
#: What stands for a measure where one of two systems has lists that are cut at FEEDBACK_DEPTH.
FEEDBACK_DEPTH = 1_000
CUT = {"mrr": "rr_1000"}
#: Of what else a row of some queries only is shown on the same ones.
BESIDE = ("bm25", "bm25_tuned", "rsft_dpo")


@dataclass(frozen=True)
class System:
    """One way to make the query that is searched, and what the search found for each query.

    `ranks` (int32, exact gold ranks), `found` (whether the search finds a relevant passage at all), `ndcg` (nDCG@10)
    and `expansions` have one entry for each query of `index`, the positions in the table of queries that the system
    covers; None means all of them.
    """

    name: str
    label: str
    ranks: NDArray[np.int32]
    found: NDArray[np.bool_]
    ndcg: NDArray[np.float64]
    expansions: list[str] | None = None
    index: NDArray[np.int64] | None = None
    seconds_per_query: float | None = None
    search_ms: NDArray[np.float32] | None = None
    """Search of each query, in its order; `seconds_per_query` has the mean of it and of generation in batches."""
    note: str = ""
    finished: float | None = None
    """Share of its answers that ended by themselves, where they are what a model said."""
    cut: bool = False
    """Its lists are cut at FEEDBACK_DEPTH before the gold rank is read off them. What it is compared with is cut there
    too."""
    others: tuple["System", ...] = ()
    """The same trained with other seeds, on the same queries. Values are means over all of them; examples, and counts
    of wins and losses, are those of the first."""

    @property
    def seeds(self) -> "tuple[System, ...]":
        """Itself and the others."""
        return (self, *self.others)

    def positions(self, total: int) -> NDArray[np.int64]:
        """Positions of its queries in the table of `total` queries."""
        return np.arange(total, dtype=np.int64) if self.index is None else np.asarray(self.index, dtype=np.int64)

    def spread(self, total: int) -> tuple[NDArray[np.int64], NDArray[np.float64], list[str | None]]:
        """Gold ranks (0 = not covered), ranks as shown (NaN = not covered) and expansions of all `total` queries."""
        positions = self.positions(total)
        ranks, shown = np.zeros(total, dtype=np.int64), np.full(total, np.nan)
        ranks[positions] = self.ranks
        shown[positions] = shown_ranks(self.ranks, self.found)
        expansions: list[str | None] = [None] * total
        for position, text in zip(positions, self.expansions or (), strict=self.expansions is not None):
            expansions[int(position)] = text
        return ranks, shown, expansions


def ordered(systems: Sequence[System]) -> list[System]:
    """In the order of the table."""
    return sorted(systems, key=lambda s: ORDER.index(s.name) if s.name in ORDER else len(ORDER))


class _Sample:
    """Values of all systems, and their bootstrap over any set of queries: one set of draws for all of them.

    A resample draws queries, and of systems that were trained with several seeds as many of these, the same ones for
    all systems with so many: what training by another seed would change is part of the interval.
    """

    def __init__(self, systems: Sequence[System], total: int, config: EvaluateConfig) -> None:
        self.config = config
        self.total = total
        self.cut = {system.name for system in systems if system.cut}
        #: (seeds, queries, measures)
        self.runs = {system.name: np.stack([_values(one, total) for one in system.seeds]) for system in systems}
        self.covered: dict[str, NDArray[np.bool_]] = {}
        for name, values in self.runs.items():
            there = ~np.isnan(values[:, :, 0])
            if (there != there[0]).any():
                raise InputError(f"system {name}: all its seeds must cover the same queries")
            self.covered[name] = there[0]
        self._means: dict[bytes, dict[str, NDArray[np.float64]]] = {}

    def means(self, where: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
        """Resampled means (resamples, measures) of all systems that cover the queries `where`: one set of draws."""
        key = where.tobytes()
        if key not in self._means:
            names = [name for name, covered in self.covered.items() if covered[where].all()]
            columns = [of_seed[where] for name in names for of_seed in self.runs[name]]
            drawn = bootstrap_means(np.concatenate(columns, axis=1), self.config.bootstrap, self.config.seed)
            of_seeds = iter(np.split(drawn, len(columns), axis=1))
            self._means[key] = {}
            for name in names:
                seeds = [next(of_seeds) for _ in self.runs[name]]
                weights = seed_weights(len(seeds), self.config.bootstrap, self.config.seed)
                self._means[key][name] = np.einsum("rs,srm->rm", weights, np.stack(seeds))
        return self._means[key]

    def values(self, name: str) -> NDArray[np.float64]:
        """Means over seeds, (queries, measures)."""
        means: NDArray[np.float64] = self.runs[name].mean(axis=0)
        return means

    def system(self, name: str, where: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
        """measure -> value, low, high of a system over the queries `where`."""
        value, drawn = self.values(name)[where].mean(axis=0), self.means(where)[name]
        return self._intervals(value, drawn)

    def pair(self, a: str, b: str) -> NDArray[np.intp]:
        """Columns of the measures that two systems are compared by: with cut lists, the reciprocal rank cut there."""
        return np.array([MEASURES.index(CUT.get(m, m) if {a, b} & self.cut else m) for m in MEASURES])

    def difference(self, a: str, b: str, where: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
        """measure -> value, low, high of a - b, paired, over the queries `where`."""
        value = self.differences(a, b, where).mean(axis=0)
        means, columns = self.means(where), self.pair(a, b)
        return self._intervals(value, (means[a] - means[b])[:, columns])

    def differences(self, a: str, b: str, where: NDArray[np.bool_]) -> NDArray[np.float64]:
        """a - b of each query of `where` (queries, measures)."""
        apart: NDArray[np.float64] = (self.values(a)[where] - self.values(b)[where])[:, self.pair(a, b)]
        return apart

    def p_values(
        self, pairs: Mapping[tuple[str, str], NDArray[np.bool_]]
    ) -> dict[tuple[str, str], NDArray[np.float64]]:
        """Of no difference over the queries of each pair: (measures,)."""
        groups: dict[bytes, list[tuple[str, str]]] = {}
        for pair, where in pairs.items():
            groups.setdefault(where.tobytes(), []).append(pair)
        found: dict[tuple[str, str], NDArray[np.float64]] = {}
        for group in groups.values():
            # Pairs over the same queries share their random signs: one test for all of them.
            apart = [self.differences(*pair, pairs[pair]) for pair in group]
            p = sign_flip_p(np.concatenate(apart, axis=1), self.config.bootstrap, self.config.seed)
            found |= dict(zip(group, np.split(p, len(group)), strict=True))
        return found

    def relative(self, a: str, b: str, where: NDArray[np.bool_]) -> dict[str, dict[str, float] | None]:
        """measure -> value, low, high of a / b - 1; None where b is 0 in the data or in a resample."""
        value_a, value_b = (self.values(name)[where].mean(axis=0) for name in (a, b))
        means, columns = self.means(where), self.pair(a, b)
        out: dict[str, dict[str, float] | None] = {}
        for measure, column in zip(MEASURES, columns, strict=True):
            base = means[b][:, column]
            out[measure] = None
            if value_b[column] > 0 and base.min() > 0:
                drawn = means[a][:, column] / base - 1
                value = float(value_a[column] / value_b[column] - 1)
                out[measure] = interval(value, drawn, self.config.confidence).as_dict()
        return out

    def _intervals(self, value: NDArray[np.float64], drawn: NDArray[np.float64]) -> dict[str, dict[str, float]]:
        return {
            measure: interval(float(value[column]), drawn[:, column], self.config.confidence).as_dict()
            for column, measure in enumerate(MEASURES)
        }


def _values(system: System, total: int) -> NDArray[np.float64]:
    """Every measure of every query (queries, measures), NaN where the system does not cover it."""
    index = system.positions(total)
    lengths = {len(index), len(system.ranks), len(system.found), len(system.ndcg)}
    lengths |= set() if system.expansions is None else {len(system.expansions)}
    if len(lengths) > 1 or len(np.unique(index)) != len(index) or not len(index):
        raise InputError(f"system {system.name}: one rank, nDCG and expansion for each of its queries, and one query")
    measures = per_query(system.ranks, system.found, system.ndcg)
    values = np.full((total, len(MEASURES)), np.nan)
    values[index] = np.stack([measures[m] for m in MEASURES], axis=1)
    return values


def _describe(system: System, queries: pa.Table, sample: _Sample, labels: Mapping[str, str]) -> dict[str, Any]:
    """`systems.<name>` of metrics.json. A median rank of None: half of the queries, at least, are not found."""
    covered = sample.covered[system.name]
    shown = np.concatenate([shown_ranks(one.ranks, one.found) for one in system.seeds])
    median = float(np.median(shown))
    index = system.positions(queries.num_rows)
    texts, answers = queries["text"].to_pylist(), queries["answers"].to_pylist()
    asked, known = [texts[i] for i in index], [answers[i] or [] for i in index] if any(answers) else None
    seeds = [diagnose(asked, one.expansions, known) for one in system.seeds]
    out: dict[str, Any] = {
        "label": system.label,
        "note": system.note,
        "num_queries": int(covered.sum()),
        "median_rank": median if np.isfinite(median) else None,
        "not_found_share": float(np.mean(np.isinf(shown))),
        "seconds_per_query": system.seconds_per_query,
        "num_seeds": len(system.seeds),
        "finished_share": _mean([one.finished for one in system.seeds]),
        "lists_cut_at": FEEDBACK_DEPTH if system.cut else None,
        **{key: _mean([getattr(one, key) for one in seeds]) for key in DIAGNOSED},
        **sample.system(system.name, covered),
    }
    if system.others:
        out["of_seeds"] = [
            dict(zip(MEASURES, map(float, of_seed[covered].mean(axis=0)), strict=True))
            for of_seed in sample.runs[system.name]
        ]
    if not covered.all():
        beside = [name for name in BESIDE if name in sample.runs and sample.covered[name][covered].all()]
        out["beside"] = {
            name: {"label": labels[name], **sample.system(name, covered)} for name in beside if name != system.name
        }
    if leaked := [one.leaked for one in seeds if one.leaked is not None]:
        clean = covered.copy()
        # What no seed gives away.
        clean[index] &= ~np.array(leaked).any(axis=0)
        out["without_leak"] = _without_leak(system.name, clean, sample)
    return out


def _mean(values: Sequence[float | None]) -> float | None:
    """Over seeds; None where there is nothing to count."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _without_leak(name: str, clean: NDArray[np.bool_], sample: _Sample) -> dict[str, Any]:
    """Measures over the queries whose expansion gives no answer away, and BM25's over the same ones."""
    out: dict[str, Any] = {"num_queries": int(clean.sum())}
    if clean.any():
        out |= sample.system(name, clean)
        if "bm25" in sample.runs:
            out["bm25"] = sample.system("bm25", clean)
            out["difference_to_bm25"] = sample.difference(name, "bm25", clean)
    return out


def _compare(pairs: Sequence[tuple[str, str]], systems: Mapping[str, System], sample: _Sample) -> dict[str, Any]:
    """`comparisons` of metrics.json: wins, losses and ties by gold rank, in all and where, how far ranks move, and
    p-values of the mean differences."""
    p_values = sample.p_values({(a, b): sample.covered[a] & sample.covered[b] for a, b in pairs})
    out: dict[str, Any] = {}
    for a, b in pairs:
        where = sample.covered[a] & sample.covered[b]
        of_a, of_b = systems[a].seeds, systems[b].seeds
        # One against several is compared with each of them.
        seeds = [(of_a[i % len(of_a)], of_b[i % len(of_b)]) for i in range(max(len(of_a), len(of_b)))]
        moved = [_moved(first, second, where, bool({a, b} & sample.cut)) for first, second in seeds]
        p = p_values[a, b]
        out[f"{a}_vs_{b}"] = {
            "num_queries": int(where.sum()),
            **moved[0],
            "halvings": float(np.mean([of_seed["halvings"] for of_seed in moved])),
            "p_value": float(p[MEASURES.index("mrr")]),
            "p_values": dict(zip(MEASURES, map(float, p), strict=True)),
        }
    return out


def _moved(a: System, b: System, where: NDArray[np.bool_], cut: bool) -> dict[str, Any]:
    """Wins, losses and ties of a against b, where, and how far ranks move. With `cut` lists end at FEEDBACK_DEPTH."""
    (ranks, shown, _), (ranks_b, shown_b, _) = (one.spread(len(where)) for one in (a, b))
    if cut:
        shown, shown_b = (np.where(of > FEEDBACK_DEPTH, np.inf, of) for of in (shown, shown_b))
        ranks, ranks_b = (np.minimum(of, FEEDBACK_DEPTH + 1) for of in (ranks, ranks_b))
    return {
        **wins_losses_ties(shown[where], shown_b[where]),
        "where": by_place(shown[where], shown_b[where]),
        "halvings": halvings(ranks[where], ranks_b[where]),
    }


def evaluate(queries: pa.Table, systems: Sequence[System], config: EvaluateConfig) -> dict[str, Any]:
    """Everything of metrics.json, for `queries` (`records.QUERIES`) and what each system found for them.

    A pair with a system that covers some of the queries only is compared on those. Raises InputError when a system's
    arrays do not fit.
    """
    systems = ordered(systems)
    names = [s.name for s in systems]
    if len(set(names)) != len(names) or not queries.num_rows:
        raise InputError(
            f"systems {', '.join(names)} over {queries.num_rows} queries: each name once, and some queries"
        )
    sample = _Sample(systems, queries.num_rows, config)
    pairs = [(a, b) for a, b in PAIRS if a in names and b in names]
    both = {(a, b): sample.covered[a] & sample.covered[b] for a, b in pairs}
    pairs = [pair for pair in pairs if both[pair].any()]
    return {
        "num_queries": queries.num_rows,
        "confidence": config.confidence,
        "bootstrap": config.bootstrap,
        "seed": config.seed,
        "systems": {s.name: _describe(s, queries, sample, {s.name: s.label for s in systems}) for s in systems},
        "differences": {f"{a}_vs_{b}": sample.difference(a, b, both[a, b]) for a, b in pairs},
        "relative_gains": {f"{a}_vs_{b}": sample.relative(a, b, both[a, b]) for a, b in pairs if a in ALIGNED},
        "comparisons": _compare(pairs, {s.name: s for s in systems}, sample),
        "parts": _parts(queries, pairs, sample),
    }


def _parts(queries: pa.Table, pairs: Sequence[tuple[str, str]], sample: _Sample) -> dict[str, Any]:
    """`parts` of metrics.json: each dataset that the queries are of by itself, and the pools of them.

    `pool` is None for a dataset, for a pool its datasets; a pool of other queries (those of test, on dev) is left out.
    p-values are of the measures DECIDING; those of a pair on several datasets are corrected for being several (Holm).
    """
    of_query = np.array(queries["dataset"].to_pylist(), dtype=object)
    datasets = {str(name): (str(name),) for name in dict.fromkeys(of_query)}
    parts: dict[str, Any] = {}
    pools = {name: members for name, members in sample.config.pools.items() if set(members) <= datasets.keys()}
    for name, members in {**datasets, **pools}.items():
        where = np.isin(of_query, members)
        inside = {(a, b): where & sample.covered[a] & sample.covered[b] for a, b in pairs}
        inside = {pair: both for pair, both in inside.items() if both.any()}
        covered = {n: where & of for n, of in sample.covered.items() if (where & of).any()}
        p_values = sample.p_values(inside)
        parts[name] = {
            "pool": None if name in datasets else list(members),
            "num_queries": int(where.sum()),
            "systems": {n: {"num_queries": int(of.sum()), **sample.system(n, of)} for n, of in covered.items()},
            "differences": {f"{a}_vs_{b}": sample.difference(a, b, both) for (a, b), both in inside.items()},
            "relative_gains": {
                f"{a}_vs_{b}": sample.relative(a, b, both) for (a, b), both in inside.items() if a in ALIGNED
            },
            "p_values": {
                measure: {f"{a}_vs_{b}": float(p[MEASURES.index(measure)]) for (a, b), p in p_values.items()}
                for measure in DECIDING
            },
        }
    for measure in DECIDING:
        for pair in (f"{a}_vs_{b}" for a, b in pairs):
            raw = {name: parts[name]["p_values"][measure].get(pair) for name in datasets}
            for name, corrected in holm({name: p for name, p in raw.items() if p is not None}).items():
                parts[name].setdefault("holm", {}).setdefault(measure, {})[pair] = corrected
    return parts


def main_model(metrics: Mapping[str, Any]) -> str | None:
    """The aligned model that the report speaks of: RSFT then DPO, the paper's best; else DPO; else RSFT."""
    return next((name for name in ("rsft_dpo", "dpo", "rsft") if name in metrics["systems"]), None)


def baseline(metrics: Mapping[str, Any]) -> str | None:
    """The plain query that the report holds models against: tuned where it was tuned."""
    return next((name for name in ("bm25_tuned", "bm25") if name in metrics["systems"]), None)


def best_control(metrics: Mapping[str, Any], measure: str = "mrr") -> str | None:
    """The control with the highest value over all queries (the first in the table's order among equals)."""
    there = [
        name
        for name in CONTROLS
        if name in metrics["systems"] and metrics["systems"][name]["num_queries"] == metrics["num_queries"]
    ]
    return max(there, key=lambda name: metrics["systems"][name][measure]["value"], default=None)


def best_model(metrics: Mapping[str, Any]) -> str | None:
    """The aligned model with the highest MRR (the first in the table's order among equals)."""
    there = [name for name in ALIGNED if name in metrics["systems"]]
    return max(there, key=lambda name: metrics["systems"][name]["mrr"]["value"], default=None)
