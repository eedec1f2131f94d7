"""DeepSpeed on a Ray Train worker: its configuration, the environment it wants, and how it is started."""

from typing import Any

from aqe.config.align import AlignConfig
from aqe.malloc import KEEP_MEMORY


def worker_env(use_gpu: bool, threads: int = 1) -> dict[str, str]:
    """Environment of every training worker; it must be there before the worker's process imports anything.

    `threads`: CPU threads a worker's tensor operations use. Never set ACCELERATE_USE_CPU here: it turns DeepSpeed off
    without a word (accelerate 1.15).
    """
    env = {
        # Explicit, so that DeepSpeed does not probe for accelerators.
        "DS_ACCELERATOR": "cuda" if use_gpu else "cpu",
        # Models and data are local directories: nothing may wait for the network.
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        # transformers, trl and torch announce future removals at every call, in every worker.
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    if not use_gpu:
        # More threads than cores spin against each other: ten times slower, measured on two cores.
        env["OMP_NUM_THREADS"] = str(threads)
        # A thread that waits sleeps instead of spinning: beside any other work, spinning made steps eight times slower.
        env["OMP_WAIT_POLICY"] = "passive"
        env |= KEEP_MEMORY
    return env


def deepspeed_config(config: AlignConfig, use_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's JSON as a dict. "auto" is filled in by transformers from the training arguments."""
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "contiguous_gradients": True,
        # Overlapping needs CUDA streams; gloo has none.
        "overlap_comm": use_gpu,
    }
    if config.zero_stage == 3:
        zero |= {
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            # Otherwise save_model writes an empty model.
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    elif not use_gpu:
        # The default bucket (500 M elements) is allocated whole; 2 GB a worker for nothing.
        zero |= {"reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000}
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": zero,
        "steps_per_print": 10**9,
        "optimizer": {
            "type": "AdamW",
            "params": {
                **dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto"),
                # DeepSpeed's own Adam is compiled at the first step (minutes, needs a compiler or nvcc).
                "torch_adam": True,
                # In one pass over memory: a sixth of the time of torch's default on two cores.
                "fused": True,
            },
        },
    }


def start_deepspeed(use_gpu: bool) -> None:
    """Let DeepSpeed adopt the process group that Ray Train made. Call first, before transformers or trl."""
    import deepspeed
    import deepspeed.ops

    if not use_gpu:
        # Otherwise init compiles this C++ operator (minutes, needs g++ and ninja) which only serves a single node
        # started by DeepSpeed's own launcher.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # ZeRO-3 shards the model while it is built and asks for the world's size then, long before the trainer exists.
    deepspeed.init_distributed(dist_backend="nccl" if use_gpu else "gloo", auto_mpi_discovery=False, verbose=False)
