"""The house: who may know whom. Every room of `aqe` stands in the table, above all that it may import."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import aqe

HOUSE = Path(aqe.__file__).parent

#: Module or package of aqe -> those that it may import, from the bottom of the house to its top. What a stage needs is
#: below it; no two stages know each other unless one reads what the other knows best.
MAY_KNOW = {
    # Words that all use.
    "errors": "",
    "config": "errors",
    "records": "errors",
    "reasoning": "",
    "prompts": "config errors reasoning",
    "endings": "config",
    "compose": "",
    "ranker": "",
    "malloc": "",
    # Files, metrics, nodes, models.
    "observe": "config",
    "exits": "errors observe",
    "sizes": "",
    "storage": "errors observe",
    "checksums": "observe storage",
    "artifact": "checksums errors storage",
    "dead_letters": "artifact",
    "mend": "artifact checksums dead_letters errors observe storage",
    "runs": "artifact errors mend sizes",
    "chain": "artifact",
    "compiled": "artifact storage",
    "nodes": "errors",
    "smollm2": "errors",
    "model_files": "errors",
    "base_model": "artifact config errors model_files smollm2 storage",
    # What every stage gets, and the pools that most use.
    "titles": "artifact",
    "track": "artifact config errors observe",
    "run": "artifact config dead_letters errors nodes observe titles track",
    "units": "artifact errors",
    "actor": "artifact errors observe records storage units",
    "pools": "actor dead_letters errors observe run units",
    # The stages, in the order of the loop. `impacts` is the engine of exact gold ranks.
    "index": "artifact compiled config errors nodes observe run storage",
    "corpus": "artifact config dead_letters errors index nodes observe prompts records run storage",
    "impacts": "artifact compiled config errors index ranker",
    "sample": "artifact base_model compose config endings errors malloc model_files nodes observe pools prompts reasoning records run storage units",
    "rank": "artifact compiled compose config errors impacts index nodes observe pools ranker records run units",
    "synthetic": "artifact base_model compose config corpus errors nodes prompts rank records run sample",
    "prefer": "artifact base_model compose config endings errors nodes pools prompts records run storage units",
    "align": "artifact base_model config dead_letters errors malloc nodes observe records run storage",
    "evaluate": "align artifact base_model compose config corpus errors nodes pools prefer rank ranker records run storage units",
    "report": "align artifact compose config dead_letters errors evaluate observe prompts run runs storage",
    # What uses an aligned model.
    "expand": "artifact base_model compose config errors prompts reasoning sample",
    "pyterrier": "errors expand",
    "__init__": "expand",
    # Which stage gets what, and the command line.
    "pipeline": "align artifact base_model config corpus evaluate expand index prefer prompts rank report run sample synthetic",
    "comparison": "artifact chain config evaluate pipeline prompts rank report sample",
    "check": "align base_model config corpus errors evaluate index observe prompts sample synthetic track",
    "cost": "config corpus synthetic",
    "machine": "errors index storage",
    "advice": "config cost machine observe sizes smollm2",
    "doctor": "align config cost errors machine nodes sample sizes smollm2",
    "clean": "align artifact chain errors mend observe runs sizes storage",
    "connection": "errors exits observe",
    "cli": "__init__ advice base_model check clean comparison config connection cost doctor errors exits machine mend observe pipeline report runs smollm2",
    "__main__": "cli",
}  # fmt: skip


def imported(path: Path) -> Iterator[str]:
    """Rooms of aqe that a file names in an import, wherever in it that stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [f"aqe.{alias.name}" for alias in node.names] if node.module == "aqe" else [node.module]
        for name in names:
            if name.startswith("aqe."):
                room = name.split(".")[1]
                # `from aqe import Expander`
                yield room if room in MAY_KNOW else "__init__"


def files(room: str) -> list[Path]:
    return sorted((HOUSE / room).rglob("*.py")) if (HOUSE / room).is_dir() else [HOUSE / f"{room}.py"]


def test_the_table_names_every_room() -> None:
    there = {path.stem for path in HOUSE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there == set(MAY_KNOW)


@pytest.mark.parametrize("room", MAY_KNOW)
def test_a_room_imports_what_the_table_says_and_nothing_else(room: str) -> None:
    known = {name for file in files(room) for name in imported(file)} - {room}
    assert known == set(MAY_KNOW[room].split())


def test_all_arrows_point_down() -> None:
    above: list[str] = []
    for room, known in MAY_KNOW.items():
        assert set(known.split()) <= set(above), f"{room} knows a room that stands above it"
        above.append(room)


STAGES = ("corpus", "index", "sample", "rank", "synthetic", "prefer", "align", "evaluate", "report")


@pytest.mark.parametrize("room", STAGES)
def test_stages_have_one_form(room: str) -> None:
    """The run first, then configuration, then artifacts by name."""
    stage = __import__(f"aqe.{room}.stage", fromlist=["stage"])
    functions = [
        function
        for name, function in inspect.getmembers(stage, inspect.isfunction)
        if function.__module__ == stage.__name__ and not name.startswith("_")
    ]
    makers = [f for f in functions if inspect.signature(f).return_annotation is aqe_artifact()]
    assert makers
    for function in makers:
        parameters = inspect.signature(function).parameters
        assert next(iter(parameters)) == "run", function
        artifacts = {name for name, p in parameters.items() if "Artifact" in str(p.annotation)}
        assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in artifacts), function


def test_more_than_six_arguments_have_a_reason() -> None:
    for path in sorted(HOUSE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                few = len([name for name in names if name not in ("self", "cls")]) <= 6
                assert few or "six arguments" in (ast.get_docstring(node) or ""), f"{path}: {node.name}"


def aqe_artifact() -> type:
    from aqe.artifact import Artifact

    return Artifact


def test_the_graph_can_be_read() -> None:
    assert len((HOUSE / "pipeline.py").read_text().splitlines()) < 200
    for room in MAY_KNOW:
        if room not in ("pipeline", "comparison", "cli"):
            assert not any("Pipeline" in line.split("#")[0] for f in files(room) for line in f.read_text().splitlines()
                           if "PipelineConfig" not in line), f"{room} knows the pipeline"  # fmt: skip


def test_platform_is_never_a_package() -> None:
    assert not (HOUSE.parent / "__init__.py").exists(), "it would shadow the standard library's platform"
