"""A stage's plain name: no two stages of a run share one, and it names nothing on the disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aqe.artifact import Artifact, Wanted
from aqe.titles import title, title_of


def wanted(stage: str, *read: Artifact, **config: Any) -> Wanted:
    return Wanted(stage, config, {str(i): one for i, one in enumerate(read)})


def made(one: Wanted) -> Artifact:
    return Artifact(Path("runs/x") / one.name, replace(one, title=title(one)).manifest())


def prompt(name: str) -> dict[str, str]:
    return {"name": name}


@pytest.mark.parametrize(
    ("one", "called"),
    [
        (wanted("corpus"), "read the corpus"),
        (wanted("judge_queries", split="dev"), "judge dev's queries"),
        (wanted("expand_dev_base", prompt=prompt("ear")), "expand dev with the base model, prompt ear"),
        (wanted("expand_test_rsft_dpo", prompt=prompt("short")), "expand test with rsft_dpo, prompt short"),
        (
            wanted("sample_train", num_samples=16, prompt=prompt("ear"), seed=0),
            "draw 16 candidates for train from the base model, prompt ear",
        ),
        (
            wanted("sample_train_rsft", num_samples=4, prompt=prompt("ear"), seed=0),
            "draw 4 candidates for train from rsft, prompt ear",
        ),
        (wanted("rank_train"), "rank train's candidates"),
        (wanted("rank_train_rsft"), "rank train's candidates from rsft"),
        (wanted("rank_dev_cuts"), "rank dev's expansions of every length"),
        (wanted("expansions_test_best_of_n"), "choose test's best candidates, which is the oracle"),
        (wanted("tune_bm25", points=[(0.9, 0.4), (0.4, 0.2)]), "try 2 settings of BM25 on dev, from 0.9, 0.4"),
        (wanted("align_dpo", seed=0), "train DPO"),
        (wanted("align_rsft_dpo", seed=0), "train DPO after RSFT"),
        (wanted("align_rsft_dpo_dpo", seed=0), "train DPO after RSFT and DPO"),
        (wanted("align_rsft_random", seed=2), "train RSFT on random candidates, seed 2"),
        (wanted("search_bm25"), "search with the plain queries"),
        (wanted("search_rsft_dpo"), "search with the expansions of rsft_dpo"),
        (wanted("some_stage_of_yours"), "some stage of yours"),
    ],
)
def test_plain_names(one: Wanted, called: str) -> None:
    assert title(one) == called


def test_what_comes_from_another_seed_says_so() -> None:
    model = made(wanted("align_rsft", seed=1))
    expanded = made(wanted("expand_test_rsft", model, prompt=prompt("ear")))
    searched = made(wanted("search_rsft", expanded))
    assert title_of(searched) == "search with the expansions of rsft, seed 1"
    # But not what compares all seeds.
    assert title(wanted("report", searched)) == "write the report"


def test_an_artifact_of_an_older_version_has_a_title_too() -> None:
    old = made(wanted("align_rsft", seed=1))
    manifest = {key: value for key, value in old.manifest.items() if key != "title"}
    assert title_of(Artifact(old.path, manifest)) == "train RSFT, seed 1"


def test_a_title_is_no_part_of_the_name() -> None:
    one = wanted("corpus", reader=3)
    assert replace(one, title="another").name == one.name
