"""Real runs: Ray Train, two workers, DeepSpeed over gloo."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aqe.align.arguments import Kind, arguments
from aqe.align.stage import train
from aqe.align.tokens import load_tokens, write_tokens
from aqe.align.trainers import build_trainer, trl_config
from aqe.artifact import read_parquet
from aqe.config.align import AlignConfig
from aqe.errors import ConfigError
from aqe.observe import metrics
from aqe.run import Run
from tests.align.test_loss import phimoe
from tests.tools.align import make_model, write_rows
from tests.tools.cluster import watching

SETTINGS: dict[str, Any] = {
    "rsft": {"learning_rate": 5e-3, "batch_size": 8, "epochs": 2},
    "dpo": {"learning_rate": 2e-3, "batch_size": 8},
    "workers": 2,
    "micro_batch_size": 2,
    "checkpoint_steps": 2,
    "max_length": 64,
}
ROWS = {"rsft": 44, "dpo": 40}
Trained = tuple[dict[str, Any], pa.Table]  # statistics and curves


def run(kind: Kind, start: Path, root: Path, *, name: str | None = None, **settings: Any) -> Trained:
    """Train one stage; returns its statistics and curves. The model lies in root/name/model."""
    out = root / (name or kind)
    stats = train(
        Run(root, lambda line: None, max_dead_share=0.0),
        AlignConfig.model_validate(SETTINGS | settings),
        kind,
        data=write_rows(kind, ROWS[kind], root / f"{kind}.parquet"),
        start=start,
        out=out,
    )
    return stats, read_parquet(out / "curves.parquet")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("align")
    make_model(path / "start")
    return path


@pytest.fixture(scope="module")
def rsft(ray_cluster: None, root: Path) -> Trained:
    return run("rsft", root / "start", root)


@pytest.fixture(scope="module")
def seen() -> dict[str, set[float]]:
    """Metrics that were exported while `dpo` trained."""
    return {}


@pytest.fixture(scope="module")
def dpo(rsft: Trained, root: Path, seen: dict[str, set[float]]) -> Trained:
    with watching() as values:
        made = run("dpo", root / "rsft/model", root)
    seen |= values
    return made


def weights(path: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    assert model.dtype == torch.float32
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_rsft_learns_and_leaves_a_plain_model(rsft: Trained, root: Path) -> None:
    stats, curves = rsft
    assert stats["rows"] == 44
    assert stats["steps"] == curves.num_rows == 12
    assert (stats["micro_batch_size"], stats["accumulation"], stats["workers"]) == (2, 2, 2)
    assert stats["last_loss"] < 0.7 * stats["first_loss"]
    assert stats["kl_per_token"] > 0.01
    assert stats["logp_change"] > 1
    # No step has rate 0: the first one changes the model already.
    divergence = curves["kl_per_token"].to_pylist()
    assert divergence[0] > 0.01 and divergence[-1] > 0.01
    assert None not in divergence, "twelve steps are few: every one is a point of the curve"
    assert stats["resumed"] is False
    assert stats["phases"].keys() == {"start", "load", "work", "write"}
    assert min(stats["phases"].values()) > 0
    model = AutoModelForCausalLM.from_pretrained(root / "rsft/model")
    assert model.config.pad_token_id is None, "the trainer's padding token must not reach the model"
    tokenizer = AutoTokenizer.from_pretrained(root / "rsft/model")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(root / "start").get_vocab()
    assert model.generate(**tokenizer("what sings?", return_tensors="pt"), max_new_tokens=3).shape[1] > 3
    assert sorted(p.name for p in (root / "rsft").iterdir()) == [
        "curves.parquet",
        "dead_letters.parquet",
        "model",
        "stats.json",
    ]


def test_learning_rate_warms_up_and_decays_as_configured(rsft: Trained) -> None:
    rates = rsft[1]["learning_rate"].to_pylist()
    # 5 % of 12 steps, rounded up: one step of warm-up, then a straight line to zero, which no step has.
    assert rates == pytest.approx([5e-3 * (12 - i) / 12 for i in range(12)])


def test_dpo_widens_the_margin_from_zero(dpo: Trained) -> None:
    stats, curves = dpo
    assert curves["loss"][0].as_py() == pytest.approx(0.6931472, abs=1e-6)
    assert curves["reward_margin"][0].as_py() == pytest.approx(0, abs=1e-5)
    assert stats["last_reward_margin"] > 0.1
    assert stats["last_reward_accuracy"] > 0.5
    assert stats["logp_change_chosen"] > stats["logp_change_rejected"]
    assert 0 < stats["kl_per_token"] < 20


def test_the_curves_are_exported_while_it_trains(dpo: Trained, seen: dict[str, set[float]]) -> None:
    _, curves = dpo
    for name, column in (
        (metrics.TRAIN_LOSS, "loss"),
        (metrics.TRAIN_MARGIN, "reward_margin"),
        (metrics.TRAIN_TOKENS, "tokens_per_second"),
    ):
        # One value a second: steps between are missed.
        assert seen[f"ray_{name}"] & set(curves[column].to_pylist()), name
    assert 40 in seen[f"ray_{metrics.ROWS}"]


@pytest.mark.parametrize("kind", ["rsft", "dpo"])
def test_two_workers_train_as_one_process_does(
    kind: Kind, rsft: Trained, dpo: Trained, root: Path, tmp_path: Path
) -> None:
    """ZeRO-2, two workers, accumulation: the same losses as plain TRL with the whole batch in one process."""
    start = root / ("start" if kind == "rsft" else "rsft/model")
    config = AlignConfig.model_validate(SETTINGS)
    tokenizer = AutoTokenizer.from_pretrained(start)
    write_tokens(kind, root / f"{kind}.parquet", 64, tmp_path / "tokens.arrow")
    # Micro-batches as in the workers' run: the last batch of an epoch is then filled up alike.
    fields = arguments(kind, config, output_dir=str(tmp_path), use_gpu=False, micro=2, accumulation=4, deepspeed=None)
    trainer = build_trainer(
        kind,
        model=AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        tokenizer=tokenizer,
        dataset=load_tokens(str(tmp_path / "tokens.arrow")),
        args=trl_config(kind, fields | {"save_strategy": "no"}),
        lora=None,
    )
    trainer.train()
    alone = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    together = (rsft if kind == "rsft" else dpo)[1]["loss"].to_pylist()
    assert together == pytest.approx(alone, rel=1e-4)


def test_a_finished_stage_is_not_trained_again(rsft: Trained, root: Path) -> None:
    began = time.time()
    stats, _ = run("rsft", root / "start", root)
    assert stats == rsft[0]
    assert time.time() - began < 5


class Killer(threading.Thread):
    """While it is entered: kills one training worker of this Ray as soon as step 5 is done and a checkpoint written."""

    def __init__(self, storage: Path) -> None:
        super().__init__(daemon=True)
        self.storage = storage
        self.killed_at: int | None = None
        self.given_up = threading.Event()

    def __enter__(self) -> "Killer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.given_up.set()
        self.join()

    def run(self) -> None:
        progress = self.storage / "progress.json"
        while not self.given_up.wait(0.01):
            if not progress.exists() or len(list(self.storage.glob("*/checkpoint_*"))) == 0:
                continue
            step = json.loads(progress.read_text()).get("step", 0)
            if step < 5:
                continue
            workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in "".join(p.cmdline())]
            if workers:
                workers[-1].kill()
                self.killed_at = step
                return


def assert_same(left: pa.Table, right: pa.Table) -> None:
    assert left["step"].to_pylist() == right["step"].to_pylist()
    for name in ("loss", "learning_rate", "grad_norm"):
        assert left[name].to_pylist() == pytest.approx(right[name].to_pylist(), rel=1e-6)


def test_a_killed_worker_changes_nothing(rsft: Trained, root: Path) -> None:
    with Killer(root / "killed/checkpoints") as killer:
        stats, curves = run("rsft", root / "start", root, name="killed")
    assert killer.killed_at is not None and killer.killed_at < 12
    assert stats["resumed"] is True
    assert_same(curves, rsft[1])
    assert torch.allclose(weights(root / "killed/model"), weights(root / "rsft/model"), rtol=1e-6, atol=1e-7)


def test_a_model_that_stays_random_ends_the_stage_before_its_first_step(
    ray_cluster: None, root: Path, tmp_path: Path
) -> None:
    start = phimoe(tmp_path / "phimoe")
    with pytest.raises(ConfigError, match=r"cannot train the model in .*phimoe.*Set align\.stages to \[rsft\]"):
        run("dpo", start, root, name="refused")
    assert sorted(p.name for p in (root / "refused").iterdir()) == ["checkpoints", "dead_letters.parquet"]
    # What it was doing last is there, a step is not.
    assert "step" not in json.loads((root / "refused/checkpoints/progress.json").read_text())


@pytest.mark.slow
def test_the_same_call_resumes_after_the_whole_run_died(dpo: Trained, root: Path) -> None:
    """Also DPO: the reference stays the start model, whatever was trained before."""
    with Killer(root / "died/checkpoints") as killer, pytest.raises(Exception, match=r"(?i)worker|died|fail"):
        run("dpo", root / "rsft/model", root, name="died", max_failures=0, dpo={**SETTINGS["dpo"], "epochs": 2})
    assert killer.killed_at is not None
    stats, curves = run("dpo", root / "rsft/model", root, name="died", dpo={**SETTINGS["dpo"], "epochs": 2})
    assert stats["resumed"] is True
    whole, expected = run("dpo", root / "rsft/model", root, name="whole", dpo={**SETTINGS["dpo"], "epochs": 2})
    assert whole["resumed"] is False
    assert_same(curves, expected)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 3])
def test_every_zero_stage_trains_alike(zero_stage: int, dpo: Trained, root: Path) -> None:
    stats, curves = run("dpo", root / "rsft/model", root, name=f"zero{zero_stage}", zero_stage=zero_stage)
    assert curves["loss"].to_pylist() == pytest.approx(dpo[1]["loss"].to_pylist(), rel=1e-4)
    assert torch.allclose(weights(root / f"zero{zero_stage}/model"), weights(root / "dpo/model"), rtol=1e-3, atol=1e-5)
    assert stats["kl_per_token"] == pytest.approx(dpo[0]["kl_per_token"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "zero_stage"), [("rsft", 2), ("dpo", 3)])
def test_lora_is_merged_into_a_plain_model(kind: Kind, zero_stage: int, rsft: Trained, root: Path) -> None:
    start = root / ("start" if kind == "rsft" else "rsft/model")
    name = f"lora_{kind}"
    stats, _ = run(kind, start, root, name=name, zero_stage=zero_stage, lora={"r": 4, "alpha": 8})
    assert stats["last_loss"] < stats["first_loss"]
    assert stats["kl_per_token"] > 1e-5
    files = {p.name for p in (root / name / "model").iterdir()}
    assert "model.safetensors" in files and "adapter_model.safetensors" not in files
    moved, before = weights(root / name / "model"), weights(start)
    assert moved.shape == before.shape
    assert not torch.equal(moved, before)
