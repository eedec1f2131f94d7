"""What lies in examples/: the notebook is executed, the BEIR recipe is checked on generated files."""

import json
import os
import re
import shlex
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from aqe.cli import app
from aqe.config.pipeline import load_config
from tests.test_beir import as_beir
from tests.test_check import in_hub_cache
from tests.tools.small_project import ROOT, write_project

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "expand_search_compare.ipynb"
RECIPE = (EXAMPLES / "beir" / "README.md").read_text()
CONFIG = "nfcorpus.yaml"


def test_every_example_is_named() -> None:
    page = (EXAMPLES / "README.md").read_text()
    named = {EXAMPLES / link for link in re.findall(r"\]\((.+?)\)", page)}
    there = {*EXAMPLES.rglob("*.ipynb"), *(path for path in EXAMPLES.rglob("README.md") if path.parent != EXAMPLES)}
    assert named == there


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


#: Run after the notebook's own cells, in its kernel.
LOOK = """
for row, expansion in zip(asked, expansions, strict=True):
    assert expansion.composed == row["text"] or expansion.composed.startswith(f"{row['text']} {row['text']} ? ")
for row in table.to_dict("records"):
    hits = [hit.docid for hit in ranker.search(row["query"], k=100)]
    assert (hits.index(row["entry"]) + 1 if row["entry"] in hits else 101) == min(row["plain"] or 101, 101), row
import json
print(json.dumps([table[["plain", "expanded"]].to_numpy(object, na_value=None).tolist(), query, expansion.text]))
"""


def test_the_notebook_runs_and_adds_up() -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install ipykernel")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    notebook.cells.append(nbformat.v4.new_code_cell(LOOK))  # type: ignore[no-untyped-call]
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(EXAMPLES)}})
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT / "platform")})
    *said, looked = [cell for cell in notebook.cells if cell.cell_type == "code"]
    ranks, query, _ = json.loads(_text(looked))
    assert len(ranks) == 30 and query in _text(said[0])
    mean = {name: sum(1 / row[i] for row in ranks if row[i]) / 30 for i, name in enumerate(("plain", "expanded"))}
    plain, expanded, difference, low, high = map(float, re.findall(r"[-+]?\d\.\d+", _text(said[-1])))
    assert [plain, expanded] == pytest.approx([mean["plain"], mean["expanded"]], abs=6e-4)
    assert difference == pytest.approx(mean["expanded"] - mean["plain"], abs=6e-4) and low <= difference <= high


def _text(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.fixture
def beir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe's directory with a small dataset under each name that it mentions, zipped as BEIR zips them."""
    write_project(tmp_path)
    as_beir(tmp_path)
    here = tmp_path / "examples" / "beir"
    shutil.copytree(EXAMPLES / "beir", here)
    for name in {*re.findall(r"[\w-]+(?=\.zip)", RECIPE)}:
        with zipfile.ZipFile(here / f"{name}.zip", "w") as archive:
            for file in sorted((tmp_path / "beir").rglob("*.*")):
                archive.write(file, f"{name}/{file.relative_to(tmp_path / 'beir')}")
    monkeypatch.chdir(here)
    in_hub_cache(load_config(CONFIG).model.source, tmp_path / "hub", monkeypatch)
    # The models of such a run take more than the disk of a small machine has left.
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**12))
    return here


def commands(verb: str) -> list[list[str]]:
    """The arguments of the recipe's commands `aqe VERB`."""
    shell = "".join(re.findall(r"^```\n(.*?)^```", RECIPE, re.DOTALL | re.MULTILINE)).replace("\\\n", "")
    found = [shlex.split(line) for line in shell.splitlines() if f"/aqe {verb} " in line]
    assert found and all(words[0] == "../../.venv/bin/aqe" for words in found)
    return [words[1:] for words in found]


#: The tokens of the tiny tokenizer, which stands for that of the hub's model, are characters.
SMALL = ["--set", "engine.max_model_len=2048"]


def test_check_accepts_the_recipe(beir: Path) -> None:
    (command,) = commands("check")
    done = CliRunner().invoke(app, [*command, *SMALL])
    assert done.exit_code == 0, done.output
    assert "train 24, dev 6, test 10 queries at most" in done.output and "one H100: " in done.output
    assert f"a run writes its artifacts to {beir / 'runs' / 'nfcorpus'}" in done.output


def test_check_refuses_a_folder_without_the_split(beir: Path) -> None:
    (command,) = commands("check")
    done = CliRunner().invoke(app, [*command, *SMALL, "--set", "queries.dev.split=valid"])
    assert done.exit_code and "has no qrels/valid.tsv" in str(done.output) + str(done.exception)


@pytest.mark.parametrize("block", re.findall(r"^  ```yaml\n(.*?)^  ```", RECIPE, re.DOTALL | re.MULTILINE))
def test_check_accepts_each_variant(beir: Path, block: str) -> None:
    other = yaml.safe_load(block.replace("limit: 200", "limit: 5").replace("skip: 200", "skip: 5"))
    dataset = other["queries"]["test"]["path"]
    given = yaml.safe_load((beir / CONFIG).read_text()) | {"corpus": {"format": "beir", "path": dataset}} | other
    (beir / CONFIG).write_text(yaml.safe_dump(given))
    (command,) = commands("check")
    done = CliRunner().invoke(app, [*command, *SMALL])
    assert done.exit_code == 0, done.output
    assert "test 10 queries at most" in done.output


def test_the_quick_try_is_a_valid_configuration(beir: Path) -> None:
    plain, quick = commands("run")
    assert plain == ["run", "--config", CONFIG]
    done = CliRunner().invoke(app, ["check", *quick[1:]])
    assert done.exit_code == 0, done.output
    assert "0.13 B parameters" in done.output and f"{beir / 'runs' / 'try'}" in done.output
