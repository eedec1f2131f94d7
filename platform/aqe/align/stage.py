"""One stage of alignment: one TorchTrainer.fit, and the model directory that comes of it."""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from aqe.align.arguments import Kind, batches, stage_config
from aqe.align.check import check_lora
from aqe.align.curves import curves_table
from aqe.align.deepspeed import worker_env
from aqe.align.export import export_model
from aqe.align.layout import CHECKPOINTS, STATS, trained
from aqe.align.tokens import load_tokens, write_tokens
from aqe.align.worker import train_loop
from aqe.artifact import Artifact, read_parquet, write_parquet, write_text
from aqe.base_model import LanguageModel
from aqe.config.align import AlignConfig
from aqe.dead_letters import common, reasons_of
from aqe.errors import ConfigError, DependencyError, InputError, StorageError
from aqe.nodes import Nodes, on_node
from aqe.observe import metrics
from aqe.observe.lines import Line
from aqe.observe.progress import duration, every, hide, show
from aqe.run import Run

#: Raise it when the same rows train another model than before.
VERSION = 3
#: Whose version changes what training gives.
PACKAGES = ("torch", "transformers", "trl", "deepspeed", "peft")
#: Why a preference file may be empty.
_EMPTY: dict[Kind, str] = {
    "rsft": "No candidate may be chosen: see prefer.allow_empty, .allow_truncated, .only_if_better_than_plain",
    "dpo": "No query's candidates rank apart: sample more, or at a higher temperature; see prefer.min_margin",
}
#: Settings of Ray Train's controller; it inherits them from this process.
_RAY_TRAIN = {
    # `report` waits for the controller's next look, 2 s apart by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Importing torch, transformers and deepspeed in every worker passes the default 60 s on a busy machine.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    # Ray Train's own print doubles every line and lets `datasets` spill byte code into the log.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


def align(
    run: Run,
    config: AlignConfig,
    targets: str,
    *,
    preferences: Artifact,
    start: LanguageModel,
    describe: Callable[[Path], None],
) -> Artifact:
    """`start`, trained on the set `targets` of `preferences`: `model/`, `curves.parquet`, `dead_letters.parquet`.

    `targets` is rsft or dpo, or rsft_random for the control. `describe` writes what stands beside the weights for those
    who use them: how the model wants to be asked.
    """
    kind: Kind = "dpo" if targets == "dpo" else "rsft"
    stage = f"{'align' if start.artifact is None else start.artifact.stage}_{targets}"

    def build(out: Path) -> dict[str, Any]:
        stats = train(run, config, kind, data=preferences.path / f"{targets}.parquet", start=start.path, out=out)
        describe(out / "model")
        return stats

    return run.make(
        stage,
        config={**config.decisive(kind), "version": VERSION},
        inputs={"model": start.artifact or start.fingerprint, "preferences": preferences},
        packages=PACKAGES,
        build=build,
    )


def train(run: Run, config: AlignConfig, kind: Kind, *, data: Path, start: Path, out: Path) -> dict[str, Any]:
    """Train the model at `start` on `data` and return what was measured.

    Needs a connection to Ray. Writes into `out`: `model/` (a plain Hugging Face directory, float32 where it was
    trained in float32), `curves.parquet`, `dead_letters.parquet`, `stats.json`. `out`/checkpoints holds checkpoints
    while training goes on and is removed at the end; on a cluster of several nodes it must be shared by them. The same
    call resumes after any death: a worker's (by itself), or this process's (from the last checkpoint). Raises
    InputError when no row can be trained on, DeadLetterError when more than `run.max_dead_share` of them cannot,
    ConfigError when the batch does not fit the workers, or LoRA or DPO the model: all before training begins.
    """
    out = out.resolve()
    storage = out / CHECKPOINTS
    if trained(out):
        # Killed between its end and the removal of its checkpoints.
        shutil.rmtree(storage, ignore_errors=True)
        stats: dict[str, Any] = json.loads((out / STATS).read_text())
        return stats
    started = time.time()
    nodes = run.nodes("gpu")
    use_gpu = nodes.gpus > 0
    workers = worker_count(kind, config, nodes)
    micro, accumulation = batches(kind, config, workers)
    if config.lora is not None:
        check_lora(config.lora, start)
    storage.mkdir(parents=True, exist_ok=True)
    tokens = storage / "tokens" / "rows.arrow"
    rows, dead = _encode(run, config, kind, data=data, start=start, out=out, tokens=tokens)
    title = run.title(out, kind)
    first = ", the reference's log-probabilities first" if kind == "dpo" else ""
    why = f": {common(reasons_of(out / 'dead_letters.parquet'))}" if dead else ""
    run.note(
        out,
        kind,
        f"{rows} rows ({dead} left out{why}), {workers} workers x {micro} rows x {accumulation} micro batches per step"
        f"{first}",
    )
    job: dict[str, Any] = {
        "kind": kind,
        "config": config,
        "model_path": str(start.resolve()),
        "tokens": str(tokens),
        "progress": str(storage / "progress.json"),
        "reference": str(storage / "reference.safetensors"),
        "refused": str(storage / "refused.txt"),
        "use_gpu": use_gpu,
        "nodes": nodes,
        "micro": micro,
        "accumulation": accumulation,
    }
    fitted = time.time()
    # Those of an attempt that died say nothing about this one.
    for name in ("progress", "refused"):
        Path(job[name]).unlink(missing_ok=True)
    run.say(Line(title, "starting workers"))
    with _progress(Path(job["progress"]), kind, title, run.say):
        checkpoint = fit(job, workers=workers, storage=storage)
    history = json.loads((checkpoint / "history.json").read_text())
    measured: dict[str, float] = _task(
        job,
        export_model,
        trained=str(checkpoint / "model"),
        tokens=job["tokens"],
        logps=history.pop("trained_logps"),
        out=str(out / "model"),
    )
    began, ready, ended = history.pop("times", [fitted] * 3)
    phases = {"start": began - fitted, "load": ready - began, "work": ended - ready}
    phases["write"] = time.time() - started - sum(phases.values())
    hours = (time.time() - started) * workers / 3600
    table = curves_table(kind, history.pop("log"), config.dpo.beta)
    write_parquet(table, out / "curves.parquet")
    stats = {
        "rows": rows,
        "dead": dead,
        "workers": workers,
        "micro_batch_size": micro,
        "accumulation": accumulation,
        "precision": "bfloat16" if config.uses_bfloat16(use_gpu) else "float32",
        "cpu_hours": round(hours * (1 if use_gpu else _threads(workers, nodes)), 5),
        "gpu_hours": round(hours * use_gpu, 5),
        **curve_statistics(table),
        **measured,
        **history,
        "phases": {name: round(max(0.0, spent), 3) for name, spent in phases.items()},
    }
    write_text(json.dumps(stats, indent=1) + "\n", out / STATS)
    shutil.rmtree(storage)
    return stats


def _encode(
    run: Run, config: AlignConfig, kind: Kind, *, data: Path, start: Path, out: Path, tokens: Path
) -> tuple[int, int]:
    """Write the rows' token ids to `tokens`; returns how many can be trained on, and how many not."""
    letters = out / "dead_letters.parquet"
    if tokens.exists() and letters.exists():
        # Those of a run that died: what TRL keeps beside them would not fit new ones.
        rows, dead = len(load_tokens(str(tokens))), read_parquet(letters)
    else:
        rows, dead = write_tokens(kind, data, config.max_length, tokens)
        write_parquet(dead, letters)
    metrics.count(metrics.DEAD_LETTERS, dead.num_rows, stage=kind)
    metrics.count(metrics.ROWS, dead.num_rows + rows, stage=kind)
    if not rows:
        why = f": {dead['reason'][0].as_py()}" if dead.num_rows else f". {_EMPTY[kind]}"
        raise InputError(f"{data}: no row of {dead.num_rows} can be trained on{why}")
    run.check_dead(kind, letters, dead.num_rows, dead.num_rows + rows)
    return rows, dead.num_rows


def curve_statistics(table: pa.Table) -> dict[str, Any]:
    """Of the curves: steps, seconds spent in steps, mean tokens/s, first and last values."""
    columns = table.to_pydict()
    seconds = sum(columns["seconds"])
    tokens = sum(s * t for s, t in zip(columns["seconds"], columns["tokens_per_second"], strict=True))
    stats = {
        "steps": columns["step"][-1],
        "train_seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "first_loss": columns["loss"][0],
        "last_loss": columns["loss"][-1],
    }
    for name in ("reward_margin", "reward_accuracy"):
        if name in columns:
            stats[f"last_{name}"] = columns[name][-1]
    return stats


def worker_count(kind: Kind, config: AlignConfig, nodes: Nodes) -> int:
    """Training workers: as configured; else as many GPUs as the batch can be shared out to; else one on all cores.

    Raises DependencyError when there are too few, and no autoscaler: Ray would wait for them for ever.
    """
    there, resource = (nodes.gpus, "GPU") if nodes.gpus else (sum(nodes.cpus), "CPU")
    if config.workers is not None:
        if there < config.workers and not nodes.grows:
            where = "".join(f" of nodes labelled {name}={value}" for name, value in nodes.labels.items())
            raise DependencyError(
                f"align.workers is {config.workers}, but the Ray cluster has {there} {resource}s{where}. "
                "Lower align.workers or add nodes."
            )
        return config.workers
    batch = stage_config(kind, config).batch_size
    return max(n for n in range(1, nodes.gpus + 1) if batch % n == 0) if nodes.gpus else 1


def fit(job: dict[str, Any], *, workers: int, storage: Path) -> Path:
    """Run the training workers to the end and return the last checkpoint's directory.

    Name and storage are the same every time for the same workers, so Ray Train takes up an earlier run. Raises
    StorageError when checkpoints cannot be written, ConfigError when the workers refuse the model.
    """
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    for name, value in _RAY_TRAIN.items():
        os.environ.setdefault(name, value)
    config: AlignConfig = job["config"]
    use_gpu: bool = job["use_gpu"]
    nodes: Nodes = job["nodes"]
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=job,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, label_selector=dict(nodes.labels)),
        run_config=RunConfig(
            # A DeepSpeed checkpoint fits the workers and the precision that wrote it: others begin anew.
            name=f"{job['kind']}-{workers}x{job['micro']}-{'bf16' if config.uses_bfloat16(use_gpu) else 'fp32'}",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            # At INFO every rank says four lines a checkpoint.
            logging_config=LoggingConfig(log_level="WARNING"),
            worker_runtime_env={"env_vars": worker_env(use_gpu, _threads(workers, nodes))},
        ),
    )
    try:
        checkpoint = trainer.fit().checkpoint
    except WorkerGroupError as error:
        # Restarts from the last checkpoint did not help: what they failed of, in one line where it was the storage.
        for failure in error.worker_failures.values():
            if isinstance(failure, StorageError):
                raise failure from error
            if isinstance(failure, OSError):
                raise StorageError(
                    f"{storage} cannot be written: {failure}. Make room, or repair it, and run again: training goes on "
                    "from its last checkpoint."
                ) from error
        raise
    if checkpoint is None:
        refused = Path(job["refused"])
        if not refused.exists():
            raise RuntimeError(f"training below {storage} ended without a checkpoint, and no worker says why")
        raise ConfigError(refused.read_text())
    return Path(checkpoint.path)


def _threads(workers: int, nodes: Nodes) -> int:
    """CPU threads of each of `workers`: the cores of the smallest node, shared out to those it may get."""
    return max(1, min(nodes.cpus) // -(-workers // len(nodes.cpus)))


def _task(job: dict[str, Any], function: Callable[..., Any], **kwargs: Any) -> Any:
    """Run `function` on the stage's start model as one Ray task, with a training worker's environment."""
    use_gpu: bool = job["use_gpu"]
    nodes: Nodes = job["nodes"]
    return on_node(
        nodes,
        function,
        job["kind"],
        env=worker_env(use_gpu, _threads(1, nodes)),
        gpu=use_gpu,
        start=job["model_path"],
        bfloat16=job["config"].uses_bfloat16(use_gpu),
        use_gpu=use_gpu,
        **kwargs,
    )


@contextlib.contextmanager
def _progress(path: Path, kind: Kind, title: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say and export how far training is, every few seconds, from the file that worker 0 keeps."""
    stop = threading.Event()

    def watch() -> None:
        first: tuple[float, int] | None = None
        said: dict[str, Any] = {}
        while not stop.wait(every()):
            if not path.exists() or (now := json.loads(path.read_text())) == said:
                continue
            said = now
            if "steps" not in now:
                # A share, so that it takes the place of the last step where workers start again.
                say(Line(title, now["doing"], share=0.0))
                continue
            first = first or (time.time(), now["step"])
            pace = (time.time() - first[0]) / max(1, now["step"] - first[1])
            left = now["steps"] - now["step"]
            known = now["step"] > first[1]
            share = now["step"] / now["steps"]
            show(kind, share, pace * left if known else None)
            rate = f", {pace:.1f} s per step, ETA {duration(pace * left)}" if known else ""
            say(Line(title, f"step {now['step']}/{now['steps']}, loss {now['loss']:.4f}{rate}", share=share))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        hide(kind)
