"""Model card, settings for serving, curves."""

from pathlib import Path

import yaml

from aqe.align.curves import curves_table, plot_curves
from aqe.align.stage import curve_statistics
from aqe.report.card import write_model_card


def log(kind: str, steps: int = 5) -> list[dict[str, float]]:
    common = [
        {
            "step": i,
            "epoch": i / 5,
            "loss": 3.0 / i,
            "learning_rate": 1e-3,
            "grad_norm": 1.0,
            "seconds": 0.5,
            "tokens": 100,
        }
        for i in range(1, steps + 1)
    ]
    if kind == "rsft":
        return common
    dpo = {"rewards/margins": 0.3, "rewards/accuracies": 0.75, "logps/chosen": -9.0, "logps/rejected": -11.0}
    return [{**row, **dpo, "rewards/chosen": 0.2, "rewards/rejected": -0.1} for row in common]


def test_card_has_front_matter_and_every_fact(tmp_path: Path) -> None:
    write_model_card(
        tmp_path,
        title="AQE for the reverse dictionary",
        facts={"Data": {"queries": 1200, "pairs": 800}, "Results": {"MRR": 0.123456, "a|b": ["x", "y"]}},
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        license="apache-2.0",
        example="Definition: {query}\nWords:",
    )
    text = (tmp_path / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert meta["library_name"] == "transformers"
    assert meta["license"] == "apache-2.0"
    for part in ("# AQE for the reverse dictionary", "| queries | 1200 |", "| MRR | 0.1235 |", "a\\|b", "Words:"):
        assert part in body


def test_card_without_license_or_hub_id_claims_neither(tmp_path: Path) -> None:
    write_model_card(tmp_path, title="T", facts={}, base_model="/home/me/model")
    meta = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert meta["license"] == "unknown"
    assert "base_model" not in meta


def test_curves_and_summary() -> None:
    table = curves_table("dpo", log("dpo"), beta=0.1)
    assert table["logratio_chosen"][0].as_py() == 2.0
    assert table["tokens_per_second"][0].as_py() == 200
    assert table["kl_per_token"].to_pylist() == [None] * 5
    stats = curve_statistics(table)
    assert (stats["steps"], stats["first_loss"], stats["last_loss"]) == (5, 3.0, 0.6)
    assert stats["last_reward_margin"] == 0.3
    assert stats["tokens_per_second"] == 200


def test_plot_is_a_picture(tmp_path: Path) -> None:
    tables = {"RSFT": curves_table("rsft", log("rsft"), 0.1), "DPO": curves_table("dpo", log("dpo"), 0.1)}
    plot_curves(tmp_path / "curves.png", tables)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
