"""docs/use-elsewhere.md: its code as it is printed gives what `Expander` gives."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import GenerationConfig

from aqe.base_model import resolve_model
from aqe.config.data import ModelConfig
from aqe.config.sample import EngineConfig, PromptConfig
from aqe.expand.expander import Expander
from aqe.expand.settings import ExpanderSettings
from aqe.prompts import PROMPTS
from aqe.sample.engine_vllm import vllm_env
from tests.tools import tiny_model
from tests.tools.waiting import until

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "use-elsewhere.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
#: The page's directory of a model, and its name on the hub.
MODEL, ID = "runs/mine/align_rsft_dpo-0123456789abcdef/model", "your-name/your-model"
QUERIES = ["who wrote the opera carmen?", " a thin strand of DNA in the cell nucleus ", "where is the river rhine"]
FLOAT32 = EngineConfig(name="transformers", dtype="float32")
HAS_VLLM = importlib.util.find_spec("vllm") is not None


def blocks(section: str, language: str = "python") -> list[str]:
    """The code that a section shows."""
    every = re.findall(r"^```(\w*)\n(.*?)^```$", SECTIONS[section], re.DOTALL | re.MULTILINE)
    return [code for its_language, code in every if its_language == language]


def run(section: str, number: int = 0, **given: Any) -> dict[str, Any]:
    """Names of a block after it ran with the names `given`; `said` is what it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(blocks(section)[number], f"{section} {number}", "exec"), given)
    return given | {"said": said.getvalue()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the page's commands and code run."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def smollm2(settings: ExpanderSettings) -> None:
    """The packaged model as the page's directory."""
    directory = Path(MODEL)
    directory.mkdir(parents=True)
    for file in resolve_model(ModelConfig()).path.iterdir():
        (directory / file.name).symlink_to(file)
    settings.write(directory)


def test_every_section_with_code_is_run() -> None:
    tried = re.findall(r'(?:run|blocks)\("(.+?)"', Path(__file__).read_text())
    assert {*tried, *USED} == {section for section in SECTIONS if blocks(section)}


def test_the_settings_are_those_that_a_run_writes(here: Path) -> None:
    (shown,) = blocks("What is in the directory", "json")
    settings = ExpanderSettings(prompt=PROMPTS["passage"])
    settings.write(here)
    assert json.loads(shown) == json.loads((here / "aqe.json").read_text())
    keys = set(re.findall(r"`([a-z_.]+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))))
    own = settings.model_dump()
    prompt = {f"prompt.{key}" for key in own.pop("prompt") if key != "name"}
    assert keys == prompt | own.keys()


def tiny(prompt: PromptConfig, **changes: Any) -> None:
    """A tiny model whose generation settings are not greedy decoding as the page's directory."""
    path = tiny_model.save(Path(MODEL))
    GenerationConfig(do_sample=True, temperature=1.5, repetition_penalty=2.0, eos_token_id=tiny_model.END).save_pretrained(path)  # fmt: skip
    ExpanderSettings(prompt=prompt, **changes).write(path)


CASES = {
    "few_shot": lambda: smollm2(
        ExpanderSettings(prompt=PROMPTS["definition_few_shot"], query_weight=2, max_tokens=10, distinct_words=True)
    ),
    "chat": lambda: smollm2(ExpanderSettings(prompt=PROMPTS["chat_definition"], max_tokens=6)),
    "completion": lambda: tiny(PROMPTS["passage"], max_tokens=40),
    "no_stop": lambda: tiny(PROMPTS["ear"], max_tokens=40, query_weight=3),
    "several_stops": lambda: tiny(PromptConfig(name="own", template="{query}:", stop=("e", "Qx"))),
}


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_gives_what_expander_gives(here: Path, case: str) -> None:
    CASES[case]()
    expected = Expander.load(MODEL, engine=FLOAT32).expand_many(QUERIES)
    names = run("Prompt and composition")
    names = run("Plain transformers", **names)
    assert [names["compose"](query, names["answer"](query)) for query in QUERIES] == [one.composed for one in expected]
    assert names["said"] == expected[0].composed + "\n"
    assert any(one.text for one in expected)
    if case == "no_stop":
        assert run("What is in the directory")["said"] == expected[0].composed + "\n"


@pytest.mark.parametrize("answer", ["", " \n", "...", "a, A b. b -", "C++ c# C", "one\ntwo  two"])
@pytest.mark.parametrize("settings", [{}, {"query_weight": 3}, {"distinct_words": True, "query_weight": 2}])
def test_composition(here: Path, answer: str, settings: dict[str, Any]) -> None:
    tiny(PROMPTS["passage"], **settings)
    recipe, page = Expander.load(MODEL).recipe, run("Prompt and composition")
    for query in ("who wrote it ??", "gold"):
        assert page["compose"](query, answer) == recipe.expansion(query, answer, "stop", 0, 0).composed


@pytest.mark.slow
@pytest.mark.skipif(not HAS_VLLM, reason="vllm is not installed")
def test_vllm_gives_what_expander_gives(here: Path) -> None:
    CASES["few_shot"]()
    # vLLM keeps a model for the life of its process.
    (here / "page.py").write_text(blocks("Prompt and composition")[0] + blocks("vLLM")[0])
    env = os.environ | vllm_env(EngineConfig(), use_gpu=False)
    done = subprocess.run([sys.executable, "page.py"], env=env, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    asked = ["who wrote the opera carmen?", "where is the river rhine"]
    expected = Expander.load(MODEL, engine=FLOAT32).expand_many(asked)
    assert done.stdout.splitlines()[-2:] == [one.composed for one in expected]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_VLLM, reason="vllm is not installed")
def test_vllms_server_gives_what_expander_gives(here: Path) -> None:
    # Its generation settings ask for a repetition penalty, which the server must be told to leave alone.
    smollm2(ExpanderSettings(prompt=PROMPTS["definition_few_shot"], query_weight=2, max_tokens=10))
    (Path(MODEL) / "generation_config.json").unlink()
    GenerationConfig(repetition_penalty=2.0, eos_token_id=2).save_pretrained(MODEL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (command,) = blocks("vLLM", "")
    python, *arguments = shlex.split(command.replace("\\\n", ""))
    assert python == "python"
    arguments += ["--port", str(port), "--enforce-eager"]
    env = os.environ | vllm_env(EngineConfig(), use_gpu=False) | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with (
        open("vllm.log", "w") as log,
        subprocess.Popen([sys.executable, *arguments], env=env, stdout=log, stderr=log) as server,
    ):
        try:
            until(
                lambda: server.poll() is not None or httpx.get(f"http://127.0.0.1:{port}/health").is_success,
                lambda: Path("vllm.log").read_text()[-3000:],
            )
            assert server.poll() is None, Path("vllm.log").read_text()[-3000:]
            code = blocks("vLLM")[1].replace(":8000", f":{port}")
            names = run("Prompt and composition", query=QUERIES[0])
            with contextlib.redirect_stdout(io.StringIO()) as said:
                exec(code, names)
        finally:
            server.terminate()
    assert said.getvalue() == Expander.load(MODEL, engine=FLOAT32).expand(QUERIES[0]).composed + "\n"


def test_a_model_of_the_hub_brings_its_settings(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's cache holds it after a download; and the upload's command fails for want of the hub alone."""
    snapshot = here / "hub" / f"models--{ID.replace('/', '--')}" / "snapshots" / ("0" * 40)
    tiny(PROMPTS["definition"], query_weight=2)
    snapshot.parent.mkdir(parents=True)
    Path(MODEL).rename(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    expander = run("The Hugging Face hub")["expander"]
    assert expander.path == snapshot
    assert expander.settings == ExpanderSettings(prompt=PROMPTS["definition"], query_weight=2)

    (commands,) = blocks("The Hugging Face hub", "")
    upload = shlex.split(commands.splitlines()[-1])
    assert upload[:3] == ["hf", "upload", ID] and MODEL in upload
    snapshot.rename(MODEL)
    program = str(Path(sys.executable).parent / "hf")
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([program, *upload[1:]], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode and "offline mode is enabled" in done.stdout + done.stderr, done.stderr


def test_pyterrier(here: Path) -> None:
    pytest.importorskip("pyterrier", reason='PyTerrier is an extra: pip install "pyterrier>=1.1"')
    tiny(PROMPTS["passage"], max_tokens=12)
    made = run("PyTerrier")
    (row,) = made["expand_query"].search(QUERIES[0]).to_dict("records")
    expected = Expander.load(MODEL).expand(QUERIES[0])
    assert (row["query_0"], row["query"], row["expansion"]) == (QUERIES[0], expected.composed, expected.text)
    assert "query_0" in made["said"]


def test_the_function_for_search_engines_asks_the_model(here: Path) -> None:
    tiny(PROMPTS["passage"], max_tokens=12)
    expander = Expander.load(MODEL)
    expand = run("Elasticsearch, OpenSearch, Solr, Pyserini", expander=expander)["expand"]
    assert expand(QUERIES[0]) == expander.expand(QUERIES[0]).composed


@pytest.fixture(scope="module")
def frameworks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with LangChain's and LlamaIndex's cores, as plain pip installs them, and no aqe.

    They are in no lock: LlamaIndex's newest versions do not fit beside vLLM.
    """
    where = tmp_path_factory.mktemp("frameworks")
    subprocess.run([sys.executable, "-m", "venv", where], check=True)
    command = [str(where / "bin" / "pip"), "install", "--quiet", "langchain-core", "llama-index-core"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no package index answers here: {done.stderr.strip().splitlines()[-1]}")
    return where / "bin" / "python"


#: Before the page's class: its function `expand`, for canned answers, and what finds passages.
GIVEN = """
EXPANDED = {"au": "au ? gold", "who?": "who ? opera bizet"}
expand = EXPANDED.__getitem__
PASSAGES = {"d1": "carmen an opera by georges bizet", "d2": "gold is a yellow metal"}

def found(query):
    return [docid for docid, text in PASSAGES.items() if set(query.split()) & set(text.split())]
"""

#: After it, for each framework.
USED = {
    "LangChain": """
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document

class ByWords(BaseRetriever):
    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(PASSAGES[docid], id=docid) for docid in found(query)]

class Asked(BaseCallbackHandler):
    def __init__(self):
        self.queries = []

    def on_retriever_start(self, serialized, query, **kwargs):
        self.queries.append(query)

retriever, asked = ExpandedRetriever(base=ByWords(), expand=expand), Asked()
assert ByWords().invoke("au") == []
assert [one.id for one in retriever.invoke("au", {"callbacks": [asked]})] == ["d2"]
assert asked.queries == ["au", "au ? gold"], "who watches a chain sees both searches"
assert [[one.id for one in each] for each in retriever.batch(["who?", "au"])] == [["d1"], ["d2"]]
""",
    "LlamaIndex": """
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

class ByWords(BaseRetriever):
    def _retrieve(self, query_bundle):
        ids = found(query_bundle.query_str)
        return [NodeWithScore(node=TextNode(text=PASSAGES[docid], id_=docid), score=1.0) for docid in ids]

retriever = ExpandedRetriever(ByWords(), expand)
assert ByWords().retrieve("au") == []
assert [one.node.node_id for one in retriever.retrieve("au")] == ["d2"]
assert [one.node.node_id for one in retriever.retrieve(QueryBundle("who?"))] == ["d1"]
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("framework", USED)
def test_a_retriever_of_a_framework_searches_with_the_expansion(
    frameworks: Path, framework: str, tmp_path: Path
) -> None:
    (code,) = blocks(framework)
    assert len(code.strip().splitlines()) <= 12
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(frameworks), "-c", GIVEN + code + USED[framework]]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
