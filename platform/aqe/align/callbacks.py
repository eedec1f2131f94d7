"""What is asked of transformers' Trainer while it trains: checkpoints for Ray Train, progress, the curve of the KL."""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from ray.train import Checkpoint
from safetensors import safe_open
from transformers import TrainerCallback

from aqe.align.arguments import Kind
from aqe.align.divergence import completion_logprobs, curve_texts, kl
from aqe.artifact import write_text
from aqe.observe import metrics

STATE = "state"
"""Inside a Ray checkpoint: what Trainer resumes from."""
MODEL = "model"
"""Inside the last Ray checkpoint: the trained weights (an adapter with LoRA)."""
CURVE_POINTS = 20
"""Points of the KL's curve, about: measuring costs one forward pass each."""
HISTORY = "history.json"
"""Inside the last Ray checkpoint: Trainer's log, one dict a logged step."""


class ReportCheckpoint(TrainerCallback):  # type: ignore[misc]
    """Hands every checkpoint of Trainer to Ray Train.

    Ray's own RayTrainReportCallback takes the highest checkpoint number in the output directory, which after a restart
    can be one of an earlier attempt, and has no barrier, so a rank can copy while another still writes. Here the output
    directory belongs to one rank and one attempt, and the step is exact.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step >= state.max_steps:
            # The trained model follows at once, see `report_model`: the optimizer's state would be written for nobody.
            control.should_save = False
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        dist.barrier()
        with tempfile.TemporaryDirectory(dir=args.output_dir) as directory:
            shutil.move(f"{args.output_dir}/checkpoint-{state.global_step}", f"{directory}/{STATE}")
            # Every rank gives its own shard; Ray merges the directories.
            ray.train.report({"step": state.global_step}, checkpoint=Checkpoint.from_directory(directory))


class StepLog(TrainerCallback):  # type: ignore[misc]
    """Adds seconds and tokens to every log row; rank 0 exports it, and leaves it in a file for the driver."""

    def __init__(self, kind: Kind, path: Path, rank: int) -> None:
        self.kind = kind
        self.path = path
        self.rank = rank
        self.time = 0.0
        self.tokens = 0.0
        self.learning_rate = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.time = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **kwargs: Any) -> None:
        self.learning_rate = optimizer.param_groups[0]["lr"]

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        row = state.log_history[-1]
        if "loss" not in row:
            return  # the summary at the end
        now, tokens = time.perf_counter(), row["num_tokens"]
        # DeepSpeed moves the schedule on within the step, so that Trainer logs the next step's rate.
        row["learning_rate"] = self.learning_rate
        row["seconds"] = now - self.time
        row["tokens"] = tokens - self.tokens
        self.time, self.tokens = now, tokens
        if self.rank == 0:
            write_text(json.dumps({"step": row["step"], "steps": state.max_steps, "loss": row["loss"]}), self.path)
            metrics.level(metrics.TRAIN_LOSS, row["loss"], stage=self.kind)
            metrics.level(metrics.TRAIN_TOKENS, row["tokens"] / row["seconds"], stage=self.kind)
            if self.kind == "dpo":
                metrics.level(metrics.TRAIN_MARGIN, row["rewards/margins"], stage=self.kind)


class KlCurve(TrainerCallback):  # type: ignore[misc]
    """Adds `kl_per_token` against the start model to the first log row, to about twenty more, and to the last step's.

    Every rank measures, because under ZeRO-3 a forward pass is work of all. Comes after `log` in the list of callbacks:
    what measuring takes is not counted as training.
    """

    def __init__(self, kind: Kind, rows: list[dict[str, Any]], reference: Path, log: StepLog) -> None:
        self.texts = curve_texts(kind, rows)
        self.reference = reference
        self.log = log

    def on_log(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        step, row = state.global_step, state.log_history[-1]
        # Read off the log, which a resumed run has too.
        measured = [entry["step"] for entry in state.log_history if "kl_per_token" in entry]
        due = not measured or step >= measured[-1] + max(1, state.max_steps // CURVE_POINTS)
        if "loss" not in row or not (due or step == state.max_steps):
            return
        started = time.perf_counter()
        training = model.training
        model.eval()
        total = 0.0
        with safe_open(self.reference, "pt") as reference:
            for i, p in enumerate(completion_logprobs(model, self.texts)):
                total += kl(p, reference.get_tensor(str(i)).to(p.device))
        model.train(training)
        row["kl_per_token"] = total / sum(length for _, length in self.texts)
        self.log.time += time.perf_counter() - started


@contextlib.contextmanager
def last_checkpoint() -> Iterator[tuple[str | None, bool]]:
    """(Trainer's directory to resume from or None, whether the stage is already done) of this Ray Train run.

    A checkpoint that was reported just before a worker died can be lost: any earlier one must do as well, and does.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None, False
        return
    with checkpoint.as_directory() as directory:
        yield f"{directory}/{STATE}", Path(directory, MODEL).exists()


def report_model(trainer: Any, facts: dict[str, Any]) -> None:
    """Report the trained model and Trainer's log as the run's last checkpoint. Call on every rank."""
    rank = dist.get_rank()
    with tempfile.TemporaryDirectory() as directory:
        # Collective under ZeRO-3; only rank 0 writes.
        trainer.save_model(f"{directory}/{MODEL}")
        # save_model has no barrier of its own.
        dist.barrier()
        if rank == 0:
            log = [row for row in trainer.state.log_history if "loss" in row]
            Path(directory, HISTORY).write_text(json.dumps({"log": log, **facts}))
        checkpoint = Checkpoint.from_directory(directory) if rank == 0 else None
        ray.train.report({"step": trainer.state.global_step}, checkpoint=checkpoint)
