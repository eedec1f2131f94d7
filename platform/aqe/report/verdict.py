"""What a run has shown, in two or three sentences. Terminal, report and model card all have them from here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aqe.evaluate.compare import CONTROLS, best_control, main_model
from aqe.evaluate.outcome import Outcome, excludes_zero, of_pair, of_part, significant
from aqe.report.console import p_text, points
from aqe.report.notice import joined

#: Fewer steps than these teach a model next to nothing. A judgement: 4 steps did not, 36 of DPO did.
FEW_STEPS = 20
#: With fewer test queries than these, more of them is the advice whatever the difference is.
FEW_QUERIES = 500
#: With more, a difference that would take so many times as many is called too small.
TOO_MANY = 50
#: To be likely (80 %) to leave out 0, an interval must be this much narrower than the difference.
POWER = 1.43


@dataclass(frozen=True)
class Verdict:
    """`outcome` of the aligned model against the best control, and the sentences that say so."""

    outcome: Outcome | Literal["no control", "no model"]
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


def verdict(metrics: Mapping[str, Any], model: str | None = None) -> Verdict:
    """Of the model that the report speaks of, or of `model`; `metrics` are those of a report."""
    model = model or main_model(metrics)
    if model is None:
        return Verdict("no model", ("No aligned model was measured, so there is nothing to judge.",))
    control = best_control(metrics)
    pair = f"{model}_vs_{control}"
    if control is None or pair not in metrics["differences"]:
        return Verdict("no control", _without_control(metrics, model))
    found = of_pair(metrics, pair)
    sentences = [_compared(metrics, model, control), _found(metrics, model, pair, found), *_sets(metrics, pair)]
    return Verdict(found, (*sentences, *_next(metrics, model, control, found)))


def _without_control(metrics: Mapping[str, Any], model: str) -> tuple[str, ...]:
    value = points(metrics["systems"][model]["mrr"]["value"])
    return (
        f"{_label(metrics, model)} was measured on {_queries(metrics)} (MRR {value} points), but there is no control "
        "that was asked all of them: whether it is better than a search without it is not known.",
        "Next: name controls, for instance --set evaluate.systems=[bm25,bm25_tuned,zero_shot,zero_shot_best].",
    )


def _label(metrics: Mapping[str, Any], model: str) -> str:
    system = metrics["systems"][model]
    seeds = system["num_seeds"]
    return str(system["label"]) + (f" (mean of {seeds} training seeds)" if seeds > 1 else "")


def _queries(metrics: Mapping[str, Any]) -> str:
    """`1,200 test queries of 4 sets`."""
    count = metrics["num_queries"]
    split = f"{metrics['split']} " if "split" in metrics else ""
    sets = len(_datasets(metrics))
    noun = "query" if count == 1 else "queries"
    return f"{count:,} {split}{noun}{f' of {sets} sets' if sets > 1 else ''}"


def _datasets(metrics: Mapping[str, Any]) -> list[str]:
    return [name for name, part in metrics.get("parts", {}).items() if part["pool"] is None]


def _compared(metrics: Mapping[str, Any], model: str, control: str) -> str:
    """What was compared."""
    systems = metrics["systems"]
    asked_all = [
        name for name in CONTROLS if name in systems and systems[name]["num_queries"] == metrics["num_queries"]
    ]
    best = f"“{systems[control]['label']}” (MRR {points(systems[control]['mrr']['value'])} points)"
    if len(asked_all) == 1:
        return f"{_label(metrics, model)} was compared with {best} on {_queries(metrics)}."
    return (
        f"{_label(metrics, model)} was compared with {len(asked_all)} controls on {_queries(metrics)}; the best of "
        f"them is {best}."
    )


def _found(metrics: Mapping[str, Any], model: str, pair: str, found: Outcome) -> str:
    """Whether it is better, and how sure that is."""
    difference, p = metrics["differences"][pair]["mrr"], metrics["comparisons"][pair]["p_value"]
    value = points(metrics["systems"][model]["mrr"]["value"])
    span = f"{points(difference['low'], True)} to {points(difference['high'], True)}"
    shown = p_text(p, metrics["bootstrap"])
    sure = f"{metrics['confidence']:.0%} interval {span}, p {shown}"
    apart = f"its MRR is {value} points, a difference of {points(difference['value'], True)} ({sure})"
    if found != "not proven":
        return f"It is {found} than the best control: {apart}."
    # Both at once say "proven"; one alone does not.
    if excludes_zero(difference) != significant(p, metrics["confidence"]):
        return f"It is not proven to be better: {apart}. Interval and p do not agree, so nothing is claimed."
    return f"It is not proven to be better: {apart}, which may be chance."


def _sets(metrics: Mapping[str, Any], pair: str) -> list[str]:
    """What each test set and pool shows by itself, where there are several sets."""
    if len(_datasets(metrics)) < 2:
        return []
    shown: dict[Outcome, list[str]] = {"better": [], "worse": [], "not proven": []}
    for name, part in metrics["parts"].items():
        if pair in part["differences"]:
            shown[of_part(metrics, name, pair)].append(name)
    return [f"By test set: {'; '.join(f'{said} on {joined(names)}' for said, names in shown.items() if names)}."]


def _next(metrics: Mapping[str, Any], model: str, control: str, found: Outcome) -> list[str]:
    """What to do now."""
    several = metrics["systems"][model]["num_seeds"] > 1
    if found == "better":
        if metrics.get("split") == "dev":
            return ["Next: these are the queries that settings were chosen by, so judge by --set evaluate.split=test."]
        if not several:
            return ["Next: this is one training run; --set evaluate.seeds=3 shows how far another one differs."]
        return []
    advice = [
        *_training(metrics, model),
        *(_more_queries(metrics, f"{model}_vs_{control}") if found != "worse" else ()),
    ]
    if not advice:
        advice = [
            "change what is learned: other training queries, more candidates (sample.num_samples), another prompt"
        ]
    return [f"Next: {'; '.join(advice)}."]


def _training(metrics: Mapping[str, Any], model: str) -> list[str]:
    """That training was too short to teach anything, where it was."""
    steps: Mapping[str, int] = metrics.get("made", {}).get(model, {}).get("training_steps", {})
    few = [
        f"{stage} took {count:,} step{'' if count == 1 else 's'}" for stage, count in steps.items() if count < FEW_STEPS
    ]
    return [f"train on more queries, because {joined(few)}, and so few teach a model next to nothing"] if few else []


def _more_queries(metrics: Mapping[str, Any], pair: str) -> list[str]:
    """How many queries could show a difference of this size, or that no number could."""
    difference, seen = metrics["differences"][pair]["mrr"], metrics["comparisons"][pair]
    count, value = seen["num_queries"], difference["value"]
    moved, fewest = seen["wins"] + seen["losses"], _fewest(metrics["confidence"])
    if moved < fewest:
        return [
            f"test on some hundreds of queries, because only {moved} of these {count:,} rank differently, and from "
            f"fewer than {fewest} no test can conclude anything"
        ]
    half = max(value - difference["low"], difference["high"] - value)
    needed = count * (POWER * half / value) ** 2 if value > 0 else float("inf")
    visible = f"with {count:,} queries only a difference of about {points(half)} points can be seen"
    if needed <= TOO_MANY * count:
        return [f"test on some {_rounded(max(needed, FEW_QUERIES, 1.5 * count)):,} queries, because {visible}"]
    if count < FEW_QUERIES:
        return [f"test on {FEW_QUERIES} queries or more, because {visible}"]
    this = "this one is far smaller" if value > 0 else "there is no gain to see"
    return [f"{visible}, and {this}: change what is learned, not the number of test queries"]


def _fewest(confidence: float) -> int:
    """So many queries must differ before swapping their systems can give a p-value that is small enough."""
    count = 1
    while not significant(2.0 ** (1 - count), confidence):
        count += 1
    return count


def _rounded(count: float) -> int:
    """Two digits of it."""
    return int(float(f"{count:.2g}"))
