"""Model card, the exported model against the trained one, curves."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from aqe.align import export
from aqe.align.curves import curves_table, plot_curves
from aqe.align.divergence import COMPARED_ROWS, completion_logps
from aqe.align.stage import curve_statistics
from aqe.align.tokens import load_tokens, write_tokens
from aqe.errors import ArtifactError
from aqe.report.card import write_model_card
from tests.tools import align
from tests.tools.align import make_model, write_rows
from tests.tools.families import make_family


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


def rows_of(directory: Path) -> list[dict[str, Any]]:
    """Rows that can be trained on, and the file that a stage has of them."""
    write_tokens("dpo", write_rows("dpo", 6, directory / "rows.parquet"), 64, directory / "tokens.arrow")
    rows: list[dict[str, Any]] = load_tokens(str(directory / "tokens.arrow")).to_list()
    return rows


def exported(start: Path, directory: Path, logps: list[float]) -> Any:
    """Export `directory`/trained as the stage does; returns the model that was written."""
    facts = align.export("dpo", start, directory, logps)
    assert facts["export_difference"] < 1e-4
    return AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32)


def test_an_exported_model_is_the_one_that_was_trained(tmp_path: Path) -> None:
    start, trained = make_model(tmp_path / "start"), make_model(tmp_path / "trained", seed=1)
    rows = rows_of(tmp_path)[:COMPARED_ROWS]
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    logps = completion_logps("dpo", model, rows)
    assert len(logps) == 2 * COMPARED_ROWS, "chosen and rejected"
    assert completion_logps("dpo", exported(start, tmp_path, logps), rows) == pytest.approx(logps, abs=1e-5)
    # Other weights than those that were trained, as a broken disk or a wrong merge would leave them.
    weights = load_file(trained / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"].mul_(1.5)
    save_file(weights, trained / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"is not the one that was trained: .* differ by"):
        align.export("dpo", start, tmp_path, logps, name="other")
    assert not (tmp_path / "other").exists()


# What PEFT says of tied embeddings, and of GPT-2's layers that lie the other way round.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
@pytest.mark.parametrize("targets", ["all-linear", "output", "embedding", "both"])
def test_adapters_of_tied_embeddings_are_exported_right(
    family: str, targets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = make_family(family, tmp_path)
    base: Any = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight
    names = {module: name.rpartition(".")[2] for name, module in base.named_modules()}
    ends = {"output": [names[base.get_output_embeddings()]], "embedding": [names[base.get_input_embeddings()]]}
    ends["both"] = ends["output"] + ends["embedding"]
    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=ends.get(targets, targets), task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = peft.get_peft_model(base, settings)
    model.save_pretrained(tmp_path / "trained")
    rows = rows_of(tmp_path)[:COMPARED_ROWS]
    logps = completion_logps("dpo", model, rows)
    made = exported(start, tmp_path, logps)
    shared = made.get_input_embeddings().weight is made.get_output_embeddings().weight
    assert shared == (targets == "all-linear"), "parted only where it must be"
    if targets != "all-linear":
        monkeypatch.setattr(export, "_untie", lambda *_: None)
        with pytest.raises(ArtifactError, match="is not the one that was trained"):
            exported(start, tmp_path, logps)
