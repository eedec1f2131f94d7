"""What one Ray Train worker does: TRL's trainer under DeepSpeed, from the start model or the last checkpoint."""

import json
import re
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from aqe.align.arguments import Kind, arguments
from aqe.align.deepspeed import deepspeed_config, start_deepspeed
from aqe.align.tokens import load_tokens
from aqe.artifact import verify, write_text
from aqe.config.align import AlignConfig
from aqe.errors import ConfigError
from aqe.observe import metrics


def train_loop(job: dict[str, Any]) -> None:
    """Train one stage and report its model. `job` holds what `stage.fit` puts there.

    Raises RuntimeError when DeepSpeed is not in charge or does not see every worker: each would then train alone.
    """
    config: AlignConfig = job["config"]
    began = time.time()
    metrics.level(metrics.BUSY, 0, stage=job["kind"])
    import ray.train

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    _tell(job, rank, "starting DeepSpeed")
    start_deepspeed(job["use_gpu"])
    # Only now: transformers and trl look at the process group while they are imported.
    from transformers import AutoTokenizer

    from aqe.align.callbacks import KlCurve, ReportCheckpoint, StepLog, last_checkpoint, report_model
    from aqe.align.divergence import COMPARED_ROWS, MEASURED_ROWS, completion_logps
    from aqe.align.trainers import build_trainer, trl_config

    with last_checkpoint() as (resume, done), tempfile.TemporaryDirectory(prefix=f"aqe_rank{rank}_") as output_dir:
        if done or not _begins(job, rank):
            return
        _tell(job, rank, "loading the model")
        args = trl_config(job["kind"], _fields(job, output_dir))
        dataset = load_tokens(job["tokens"])
        log = StepLog(job["kind"], Path(job["progress"]), rank)
        first = dataset.select(range(min(MEASURED_ROWS, len(dataset)))).to_list()
        trainer = build_trainer(
            job["kind"],
            # After the arguments: with ZeRO-3 they make from_pretrained build the model sharded.
            model=load_model(job["model_path"], job["kind"]),
            tokenizer=AutoTokenizer.from_pretrained(job["model_path"]),
            dataset=dataset,
            args=args,
            lora=config.lora,
            callbacks=[log, KlCurve(job["kind"], first, Path(job["reference"]), log), ReportCheckpoint()],
        )
        if not trainer.is_deepspeed_enabled or trainer.accelerator.num_processes != world:
            raise RuntimeError(
                f"DeepSpeed is {'on' if trainer.is_deepspeed_enabled else 'off'} and accelerate sees "
                f"{trainer.accelerator.num_processes} of {world} workers"
            )
        metrics.level(metrics.BUSY, 1, stage=job["kind"])
        ready = time.time()
        logps = job["kind"] == "dpo" and resume is None
        _tell(job, rank, "computing the reference's log-probabilities" if logps else "at the first step")
        trainer.train(resume_from_checkpoint=resume)
        metrics.level(metrics.BUSY, 0, stage=job["kind"])
        # Every rank: under ZeRO-3 a forward pass is work of all.
        trained = completion_logps(job["kind"], trainer.model, first[:COMPARED_ROWS])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        facts = {"resumed": resume is not None, "worker_peak_gib": round(peak, 2), "trained_logps": trained}
        facts["times"] = [began, ready, time.time()]
        report_model(trainer, facts)


def _tell(job: dict[str, Any], rank: int, doing: str) -> None:
    """Leave a note for the driver of what is done before the first step."""
    if rank == 0:
        write_text(json.dumps({"doing": doing}), Path(job["progress"]))


def _begins(job: dict[str, Any], rank: int) -> bool:
    """Whether training may begin: rank 0 measures the start model first, and may refuse it.

    A refusal is a file and no error, which Ray Train would answer with other workers. Before the arguments of the
    trainer: with ZeRO-3 these shard every model that is loaded after them.
    """
    import torch
    import torch.distributed as dist
    from ray.train.torch import get_device

    from aqe.align.divergence import write_reference

    refused, use_gpu = Path(job["refused"]), job["use_gpu"]
    if rank == 0 and not Path(job["reference"]).exists():
        _tell(job, rank, "measuring the model that it starts from")
        try:
            write_reference(
                job["kind"],
                start=job["model_path"],
                tokens=job["tokens"],
                out=job["reference"],
                bfloat16=job["config"].uses_bfloat16(use_gpu),
                use_gpu=use_gpu,
            )
        except ConfigError as error:
            write_text(str(error), refused)
    # Told, not looked for: a shared file system may show another node a new file late.
    flag = torch.tensor([int(refused.exists())], device=get_device())
    dist.broadcast(flag, src=0)
    return not flag.item()


def _fields(job: dict[str, Any], output_dir: str) -> dict[str, Any]:
    kind: Kind = job["kind"]
    config: AlignConfig = job["config"]
    return arguments(
        kind,
        config,
        output_dir=output_dir,
        use_gpu=job["use_gpu"],
        micro=job["micro"],
        accumulation=job["accumulation"],
        deepspeed=deepspeed_config(config, job["use_gpu"]),
    )


def load_model(path: str, kind: Kind) -> Any:
    """The stage's start model in float32; DeepSpeed makes the bfloat16 copy where one is asked for.

    For DPO without any dropout: TRL turns off the modules that are called so, but many models drop by a function, with
    a number from their configuration. Policy and reference would then differ before the first step. What stays random
    even so is refused before training, see `divergence.write_reference`.

    Always the start, also when resuming: DPO's reference log-probabilities are its own. DeepSpeed's checkpoint is
    loaded over it afterwards.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    verify(Path(path), patient=True)
    config = AutoConfig.from_pretrained(path)
    if kind == "dpo":
        _quieten(config)
    return AutoModelForCausalLM.from_pretrained(path, config=config, dtype=torch.float32)


def _quieten(config: Any) -> None:
    """Turn off what makes a model's forward pass random while it trains, in all parts of its configuration.

    That is dropout of any name, and jitter of routers.
    """
    from transformers import PreTrainedConfig

    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _quieten(value)
        elif isinstance(value, float) and re.search("drop|jitter", name):
            setattr(config, name, 0.0)
