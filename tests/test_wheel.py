"""The package alone: built as a wheel, installed by plain pip into an empty environment, used outside the checkout."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.impacts.test_gold import build
from tests.tools import tiny_model
from tests.tools.small_project import ROOT

pytestmark = pytest.mark.slow

#: Nothing of the checkout and nothing of the user's cache.
ENV = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def here() -> Iterator[Path]:
    """A directory with the wheel (dist/) and an environment (venv/) that it is installed in; 2 GB, so not pytest's."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def run(here: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {**ENV, "AQE_CACHE": str(here / "cache"), "COLUMNS": "200"}
    program = here / "venv" / "bin" / command[0]
    return subprocess.run([program, *command[1:]], cwd=here, env=env, capture_output=True, text=True, check=False)


def ran(here: Path, *command: str) -> str:
    """What a command that must succeed prints."""
    done = run(here, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(here: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", here / "venv"], check=True, env=ENV)
    asked = run(here, "pip", "download", "--quiet", "--no-deps", "--dest", "probe", "setuptools>=77")
    if asked.returncode:
        pytest.skip(f"no package index answers here: {asked.stderr.strip().splitlines()[-1]}")
    # A copy: setuptools builds inside the directory that it is given.
    source = here / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "platform", source / "platform", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    ran(here, "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", str(source))
    shutil.rmtree(source)
    [path] = (here / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def installed(here: Path, wheel: Path) -> Path:
    """The directory to call commands in."""
    ran(here, "pip", "install", "--quiet", str(wheel))
    return here


def test_it_holds_the_code_the_presets_and_the_templates(wheel: Path) -> None:
    package = ROOT / "platform" / "aqe"
    expected = {
        str(path.relative_to(package.parent)) for end in ("py", "j2", "yaml") for path in package.rglob(f"*.{end}")
    }
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == expected


def test_plain_pip_makes_a_light_environment(installed: Path) -> None:
    ran(installed, "pip", "check")
    names = ["ray", "pyserini", "jnius", "vllm", "trl", "deepspeed", "datasets", "pandas", "matplotlib", "llama_cpp"]
    code = f"from importlib.util import find_spec; print([name for name in {names} if find_spec(name)])"
    assert ran(installed, "python", "-c", code).strip() == "[]"


def test_the_command_and_the_presets(installed: Path) -> None:
    assert "check" in ran(installed, "aqe", "--help")
    names = [line.split()[0] for line in ran(installed, "aqe", "presets").splitlines()]
    code = (
        "import aqe; from aqe.config.pipeline import load_config\n"
        f"print(aqe.__file__, *[load_config(name).run_dir for name in {names}])"
    )
    file, *runs = ran(installed, "python", "-c", code).split()
    assert Path(file).is_relative_to(installed / "venv")
    assert runs == [str((installed / "runs" / name).resolve()) for name in names] and "demo" in names


@pytest.mark.parametrize("verb", ["run", "check", "sample"])
def test_what_needs_more_names_the_extras(installed: Path, verb: str) -> None:
    done = run(installed, "aqe", verb, "--config", "demo")
    assert done.returncode == 4
    [line] = done.stderr.splitlines()
    assert line.startswith("DependencyError: ") and "pip install '.[ray,train,lucene]'" in line


def test_it_reads_a_corpus_and_ranks_without_java(installed: Path) -> None:
    (installed / "corpus.jsonl").write_text('{"docid": "a", "text": "one"}\n{"docid": "b", "text": "two"}\n')
    build(
        installed / "impacts", {"a": ["opera", "seville", "carmen"], "b": ["opera"], "c": ["bull", "fight"]}, shards=2
    )
    code = (
        "from pathlib import Path\n"
        "from aqe.config.data import IndexConfig; from aqe.config.sources import FileCorpus\n"
        "from aqe.corpus.passages import read_corpus\n"
        "from aqe.impacts.gold import open_gold_ranker\n"
        "[batch] = read_corpus(FileCorpus(format='jsonl', path='corpus.jsonl'), [])\n"
        "ranker = open_gold_ranker(Path('impacts'), IndexConfig())\n"
        "texts = ['the operas', 'an opera ? Carmen']\n"
        "print(batch['docid'].to_pylist(), *[gold.rank for gold in ranker.gold_ranks(texts, ['a'])])"
    )
    # `b` is the shorter one, until the expansion comes.
    assert ran(installed, "python", "-c", code).strip() == "['a', 'b'] 2 1"


def test_the_expander_expands(installed: Path) -> None:
    tiny_model.save(installed / "model")
    printed = ran(installed, "aqe", "expand", "model", "who wrote carmen?").splitlines()
    code = "from aqe import Expander; made = Expander.load('model').expand('who wrote carmen?'); print(made.text)"
    text = ran(installed, "python", "-c", code).rstrip("\n")
    assert text and printed == [f"expansion  {text}", f"composed   who wrote carmen ? {text}"]
