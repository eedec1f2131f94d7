"""`make setup`: which Python and which lock it takes, what it says, and when it does nothing. uv and GPUs are stand-ins."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "requirements" / "setup.sh"
#: It writes down how it is called, finds the Pythons that $HERE names, and makes an environment of a stand-in.
UV = r"""#!/bin/bash
echo "$*" >> uv.log
last=${@: -1}
case "$1 $2" in
  "python find") [[ " $HERE " == *" $last "* ]] && echo "$PWD/python$last" ;;
  "venv -q")
    [[ "$*" == *--clear* ]] && rm -rf "$last"
    version=${5##*python}; [ "$4" = --managed-python ] && version=$6
    mkdir -p "$last/bin" && cp "python$version" "$last/bin/python" ;;
  "pip sync") [ -z "$FAILS" ] ;;
esac
"""
PYTHON = '#!/bin/sh\n[ "$1" = -c ] && echo {version}; exit 0\n'


@dataclass
class Checkout:
    """A directory with the script, locks that are empty, and the stand-ins."""

    here: Path
    pythons: str = "3.11"
    """Versions that are on this machine."""
    variables: dict[str, str] = field(default_factory=dict)

    def setup(self, **asked: str) -> subprocess.CompletedProcess[str]:
        """Run the script with `asked` in its environment; what uv was asked then is in `uv`."""
        (self.here / "uv.log").unlink(missing_ok=True)
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "ACCELERATOR", "PIP_FIND_LINKS")}
        env |= {"PATH": f"{self.here}:{env['PATH']}", "HERE": self.pythons, "FAILS": "", **self.variables, **asked}
        return subprocess.run(
            [self.here / "requirements" / "setup.sh", ".venv"], env=env, capture_output=True, text=True, check=False
        )

    def set_up(self, **asked: str) -> str:
        """What it says where it succeeds, in one line or more."""
        done = self.setup(**asked)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout

    @property
    def uv(self) -> list[str]:
        log = self.here / "uv.log"
        return log.read_text().splitlines() if log.exists() else []

    @property
    def installed(self) -> str:
        return (self.here / ".venv" / ".ready").read_text().split()[0]

    def gpu(self, driver: str) -> None:
        self.program("nvidia-smi", f"#!/bin/sh\necho 'NVIDIA H200, {driver}'; echo 'NVIDIA H200, {driver}'\n")

    def program(self, name: str, text: str) -> None:
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    (tmp_path / "requirements").mkdir()
    shutil.copy(SCRIPT, tmp_path / "requirements")
    for version in ("3.10", "3.11", "3.12", "3.13"):
        for kind in ("cpu", "gpu"):
            (tmp_path / "requirements" / f"{kind}-{version}.txt").write_text(f"{kind} {version}\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    made = Checkout(tmp_path)
    made.program(".tool/bin/uv", UV)
    made.program(".tool/bin/python", "#!/bin/sh\nexit 1\n")
    made.program("nvidia-smi", "#!/bin/sh\nexit 9\n")
    for version in ("3.10", "3.11", "3.12", "3.13"):
        made.program(f"python{version}", PYTHON.format(version=version))
    return made


def test_without_a_gpu_the_cpu_lock_is_taken_and_a_second_call_does_nothing(checkout: Checkout) -> None:
    said = checkout.set_up()
    assert said.startswith("No NVIDIA driver answers (ACCELERATOR=gpu ")
    assert "installing requirements/cpu-3.11.txt, Python 3.11." in said and "First set-up" in said
    assert [line for line in checkout.uv if line.startswith("pip sync")] == [
        "pip sync -q --python .venv/bin/python --torch-backend cpu requirements/cpu-3.11.txt"
    ]
    assert checkout.uv[-1].endswith("-e .")
    assert checkout.set_up() == "" and checkout.uv == []
    # A new lock is installed into the same environment, whatever its time.
    (checkout.here / "requirements" / "cpu-3.11.txt").write_text("other\n")
    assert checkout.set_up() == "As before: installing requirements/cpu-3.11.txt, Python 3.11.\n"
    assert not any(line.startswith("venv") for line in checkout.uv)


def test_with_a_gpu_its_lock_is_taken(checkout: Checkout) -> None:
    checkout.gpu("580.65.06")
    said = checkout.set_up()
    assert said.startswith("NVIDIA H200 with driver 580.65.06 (ACCELERATOR=cpu ")
    assert said.endswith("installing requirements/gpu-3.11.txt, Python 3.11.\n") and said.count("\n") == 1
    assert "pip sync -q --python .venv/bin/python requirements/gpu-3.11.txt" in checkout.uv
    # What was installed once stays, until something else is asked for.
    checkout.program("nvidia-smi", "#!/bin/sh\nexit 9\n")
    assert checkout.set_up() == ""
    assert checkout.set_up(ACCELERATOR="cpu").startswith("As asked: installing requirements/cpu-3.11.txt")
    assert checkout.set_up() == "" and checkout.installed == "requirements/cpu-3.11.txt"


def test_a_driver_that_is_too_old_is_told(checkout: Checkout) -> None:
    checkout.gpu("570.86.15")
    said = checkout.set_up()
    assert "driver 570.86.15 is older than 580" in said and "make setup ACCELERATOR=gpu" in said
    assert checkout.installed == "requirements/cpu-3.11.txt"


def test_asked_for_the_gpus_packages_where_no_gpu_is(checkout: Checkout) -> None:
    said = checkout.set_up(ACCELERATOR="gpu", PYTHON=str(checkout.here / "python3.13"))
    assert said == "As asked: installing requirements/gpu-3.13.txt, Python 3.13.\n"


@pytest.mark.parametrize(("here", "taken"), [("3.13", "3.13"), ("3.10 3.12 3.13", "3.12"), ("3.13 3.11", "3.11")])
def test_whichever_python_is_there_is_taken(checkout: Checkout, here: str, taken: str) -> None:
    checkout.pythons = here
    assert f"installing requirements/cpu-{taken}.txt, Python {taken}." in checkout.set_up()


def test_where_no_python_is_uv_fetches_one(checkout: Checkout) -> None:
    checkout.pythons = "3.10"
    assert "installing requirements/cpu-3.11.txt, Python 3.11, which uv fetches." in checkout.set_up()
    assert "venv -q --allow-existing --managed-python --python 3.11 .venv" in checkout.uv


def test_another_python_makes_another_environment(checkout: Checkout) -> None:
    checkout.set_up()
    other = str(checkout.here / "python3.12")
    assert "installing requirements/cpu-3.12.txt" in checkout.set_up(PYTHON=other)
    assert f"venv -q --clear --python {other} .venv" in checkout.uv
    # Named or not, it stays.
    assert checkout.set_up(PYTHON=other) == checkout.set_up() == ""


def test_what_cannot_be_is_refused(checkout: Checkout) -> None:
    for asked, said in (
        ({"PYTHON": str(checkout.here / "python3.10")}, "Python 3.10: aqe needs one of 3.11 3.12 3.13."),
        ({"PYTHON": "/nowhere/python"}, "PYTHON=/nowhere/python does not run."),
        ({"ACCELERATOR": "tpu"}, "ACCELERATOR=tpu: it can be cpu or gpu."),
    ):
        done = checkout.setup(**asked)
        assert done.returncode == 2 and done.stderr.startswith(said) and done.stdout == ""
        assert not (checkout.here / ".venv").exists()


def test_what_failed_is_tried_again(checkout: Checkout) -> None:
    assert checkout.setup(FAILS="yes").returncode != 0
    assert "installing" in checkout.set_up() and checkout.installed


def test_torch_comes_from_a_directory_that_has_its_wheel_for_this_python(checkout: Checkout) -> None:
    (checkout.here / "wheels").mkdir()
    (checkout.here / "wheels" / "torch-2.13.0+cpu-cp312-cp312-manylinux_2_28_x86_64.whl").touch()
    links = str(checkout.here / "wheels")
    checkout.set_up(PIP_FIND_LINKS=links)
    assert any("--torch-backend cpu" in line for line in checkout.uv)
    checkout.set_up(PIP_FIND_LINKS=links, PYTHON=str(checkout.here / "python3.12"))
    assert any(f"--find-links {links} requirements/cpu-3.12.txt" in line for line in checkout.uv)
