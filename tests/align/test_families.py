"""From candidates to an aligned model, for a tiny model of each family: what is trained is what was drawn."""

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from aqe import records
from aqe.align.arguments import Kind, arguments
from aqe.align.divergence import COMPARED_ROWS, completion_logps
from aqe.align.stage import train
from aqe.align.tokens import IGNORED, load_tokens, write_tokens
from aqe.align.trainers import build_trainer, trl_config
from aqe.align.worker import load_model
from aqe.artifact import read_parquet, write_parquet
from aqe.compose import clean
from aqe.config.align import AlignConfig
from aqe.config.rank import PreferConfig
from aqe.expand.expander import Expander
from aqe.expand.recipe import load_recipe
from aqe.expand.settings import ExpanderSettings
from aqe.prefer.stage import PreferWorker
from aqe.prompts import token_ids
from aqe.run import Run
from aqe.sample.engine import continuation
from serve.engine import Decoding, Job, Piece
from serve.engine_transformers import TransformersServing
from tests.tools.align import export
from tests.tools.families import EACH, FAMILIES, FAST, families_root, make_family, one_thread  # noqa: F401
from tests.tools.family_samples import (
    CONFIG,
    DRAWN,
    NUM_SAMPLES,
    QUERIES,
    plan,
    prompts_of,
    transformers_samples,
    vllm_samples,
)

KINDS: tuple[Kind, ...] = ("rsft", "dpo")
ENGINES = [
    "transformers",
    pytest.param(
        "vllm", marks=pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
    ),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families_root(tmp_path_factory)


def ranks_of(query: int) -> dict[int, int]:
    """A gold rank for each candidate of a query, no two alike, so that a rank names a candidate; -1 the plain query."""
    return {-1: 100, **{i: 1 + (5 * i + 3 * query) % NUM_SAMPLES for i in range(NUM_SAMPLES)}}


def candidates(name: str, directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of records.SAMPLES by qid."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in read_parquet(directory / f"{name}.parquet").to_pylist():
        rows.setdefault(row["qid"], []).append(row)
    return rows


def preferences(name: str, root: Path, samples: dict[str, list[dict[str, Any]]]) -> dict[Kind, list[dict[str, Any]]]:
    """The sets that the stage makes of candidates, of all the family's prompts."""
    made: dict[Kind, list[dict[str, Any]]] = {"rsft": [], "dpo": []}
    config = PreferConfig(pairs_per_query=NUM_SAMPLES // 2, allow_truncated=True, allow_empty=True)
    for kind, prompt in prompts_of(name).items():
        ranks = [
            [{"sample_idx": i, "gold_rank": rank, "ndcg": None, "score": 1 / rank} for i, rank in ranks_of(n).items()]
            for n in range(len(QUERIES))
        ]
        rows = [
            {"qid": f"{kind}-{n}", "query": query, "samples": samples[f"{kind}-{n}"], "ranks": ranks[n]}
            for n, query in enumerate(QUERIES)
        ]
        result = PreferWorker(config, prompt, make_family(name, root))(rows)
        assert not result.dead, result.dead
        for given in result.data.to_pylist():
            made["rsft"].append(given["rsft"])
            made["dpo"] += given["dpo"]
    return made


def encoded(kind: Kind, rows: list[dict[str, Any]], directory: Path) -> list[dict[str, Any]]:
    """What training reads of preference rows."""
    directory.mkdir(parents=True, exist_ok=True)
    schema = records.RSFT if kind == "rsft" else records.DPO
    write_parquet(records.table(rows, schema), directory / f"{kind}.parquet")
    count, dead = write_tokens(kind, directory / f"{kind}.parquet", 200, directory / "tokens.arrow")
    assert (count, dead.num_rows) == (len(rows), 0)
    read: list[dict[str, Any]] = load_tokens(str(directory / "tokens.arrow")).to_list()
    return read


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", EACH)
def test_what_is_trained_is_what_was_drawn(name: str, engine: str, root: Path, tmp_path: Path) -> None:
    family, tokenizer = FAMILIES[name], AutoTokenizer.from_pretrained(make_family(name, root))
    if engine == "vllm" and family.not_vllm is not None:
        assert family.not_vllm in (vllm_samples(name, root) / f"{name}.error").read_text()
        return
    samples = candidates(name, (vllm_samples if engine == "vllm" else transformers_samples)(name, root))
    prompts = {row["qid"]: row["prompt"] for row in plan(name, root)}
    turn = {"plain": tokenizer.eos_token_id, "chat": tokenizer.convert_tokens_to_ids(family.turn or "")}

    def drawn(qid: str, rank: int) -> list[int]:
        """Ids of the candidate with this rank: those that were drawn, with an end where a stop text ended it."""
        kind, number = qid.split("-")
        (index,) = [i for i, r in ranks_of(int(number)).items() if r == rank]
        row = samples[qid][index]
        assert row["sample_idx"] == index
        ids = list(row["token_ids"])
        return ids if row["stop_at"] is None else [*ids[: row["stop_at"]], turn[kind]]

    made = preferences(name, root, samples)
    assert len(made["rsft"]) == len(prompts)
    read = {kind: encoded(kind, made[kind], tmp_path / kind) for kind in KINDS}
    again = 0
    for row, ids in zip(made["rsft"], read["rsft"], strict=True):
        asked, told = token_ids(tokenizer, prompts[row["qid"]]), drawn(row["qid"], row["gold_rank"])
        assert (row["prompt_ids"], row["completion_ids"]) == (asked, told)
        assert ids == {"input_ids": asked + told, "labels": [IGNORED] * len(asked) + told}
    for row, ids in zip(made["dpo"], read["dpo"], strict=True):
        asked = token_ids(tokenizer, prompts[row["qid"]])
        chosen, rejected = drawn(row["qid"], row["chosen_rank"]), drawn(row["qid"], row["rejected_rank"])
        assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == (asked, chosen, rejected)
        assert ids == {"prompt_ids": asked, "chosen_ids": chosen, "rejected_ids": rejected}
        again += tokenizer(row["chosen"], add_special_tokens=False)["input_ids"] != chosen
    assert again > len(made["dpo"]) / 2, "most texts have other tokens than those that were drawn"


async def served(serving: TransformersServing, job: Job) -> list[Piece]:
    return [piece async for piece in serving.stream(job, 0)]


@pytest.mark.parametrize("name", EACH)
def test_serving_feeds_the_prompt_that_was_trained(name: str, root: Path) -> None:
    path = make_family(name, root)
    made = preferences(name, root, candidates(name, transformers_samples(name, root)))
    for kind, prompt in prompts_of(name).items():
        recipe = load_recipe(path, prompt=prompt)
        serving = TransformersServing(recipe, CONFIG)
        fed: list[list[int]] = []
        serving._engine.model.register_forward_pre_hook(lambda module, args, fed=fed: fed.append(args[0][0].tolist()))

        trained = {row["qid"]: row["prompt_ids"] for row in made["rsft"]}
        for n, query in enumerate(QUERIES):
            asyncio.run(served(serving, Job("", recipe.prompt(query), (), Decoding(1), whole=True)))
            assert fed.pop() == trained[f"{kind}-{n}"]
            assert not fed


def settings(rows: int, lora: bool) -> AlignConfig:
    """One step over all rows, at its full rate."""
    stage = {"learning_rate": 1e-3, "batch_size": rows, "warmup_ratio": 0.0}
    adapter = {"r": 4, "alpha": 8} if lora else None
    return AlignConfig.model_validate({"rsft": stage, "dpo": stage, "lora": adapter, "micro_batch_size": rows})


def step(kind: Kind, start: Path, rows: list[dict[str, Any]], directory: Path, lora: bool) -> Any:
    """One step of a worker's trainer, in this process, and its export to `directory`/model; returns the trainer."""
    read = encoded(kind, rows, directory)
    config, tokens = settings(len(rows), lora), str(directory / "tokens.arrow")
    fields = arguments(
        kind, config, output_dir=str(directory), use_gpu=False, micro=len(rows), accumulation=1, deepspeed=None
    )
    trainer = build_trainer(
        kind,
        model=load_model(str(start), kind),
        tokenizer=AutoTokenizer.from_pretrained(start),
        dataset=load_tokens(tokens),
        args=trl_config(kind, fields | {"save_strategy": "no"}),
        lora=config.lora,
    )
    trainer.train()
    trainer.save_model(str(directory / "trained"))
    logps = completion_logps(kind, trainer.model, read[:COMPARED_ROWS])
    measured = export(kind, start, directory, logps)
    assert measured["kl_per_token"] > 0
    return trainer


def check_export(name: str, start: Path, out: Path, rows: list[dict[str, Any]]) -> Any:
    """The model directory is one of its family, as the start is; returns the model."""
    model, before = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (out, start))
    tokenizer, own = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(start)
    assert type(model) is type(before)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (before.get_input_embeddings().weight is before.get_output_embeddings().weight)
    after, state = model.state_dict(), before.state_dict()
    assert after.keys() == state.keys()
    assert any(not torch.equal(after[key], state[key]) for key in state)
    generation = GenerationConfig.from_pretrained(out)
    assert generation.eos_token_id == GenerationConfig.from_pretrained(start).eos_token_id
    assert (tokenizer.chat_template, tokenizer.eos_token) == (own.chat_template, own.eos_token)
    prompts = {row["qid"]: row["prompt_ids"] for row in rows}
    assert prompts == {row["qid"]: token_ids(tokenizer, row["prompt"]) for row in rows}
    for kind, prompt in prompts_of(name).items():
        ExpanderSettings(prompt=prompt, max_tokens=DRAWN.max_tokens).write(out)
        expander = Expander.load(out, engine=CONFIG)
        made: Any = expander.engine
        for n, query in enumerate(QUERIES):
            ids = torch.tensor([prompts[f"{kind}-{n}"]])
            mask = torch.ones_like(ids)
            new = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=DRAWN.max_tokens,
                eos_token_id=sorted(made.ends),
                pad_token_id=0,
            )[0, ids.shape[1] :].tolist()
            whole = continuation(tokenizer, ids[0].tolist(), new[:-1] if new[-1] in made.ends else new)
            text = whole[: min((whole.find(stop) for stop in prompt.stop if stop in whole), default=None)]
            raw = text.rstrip("\ufffd") if text == whole else text
            said = new[: len(new) - (new[-1] in made.ends)]
            answer = expander.recipe.reasoning.answer(expander.recipe.prompt(query), raw, said)
            assert expander.expand(query).text == clean(answer)
    return model


# GPT-2 keeps its matrices the other way round, which PEFT finds out by itself.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
# PEFT doubles the rank of Mixtral's fused experts.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", EACH)
def test_a_step_of_both_stages_gives_a_model_of_the_family(name: str, lora: bool, root: Path, tmp_path: Path) -> None:
    start = make_family(name, root)
    made = preferences(name, root, candidates(name, transformers_samples(name, root)))
    for kind in KINDS:
        trainer = step(kind, start, made[kind], tmp_path / kind, lora)
        (loss,) = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        if kind == "dpo":
            assert loss == pytest.approx(0.6931472, abs=1e-5), "policy and reference are one before the first step"
        model = check_export(name, start, tmp_path / kind / "model", made["rsft"])
        row = made["rsft"][2]
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        with torch.no_grad():
            trained = trainer.model.eval()(ids).logits
            assert torch.allclose(model(ids).logits, trained, atol=1e-3), "merged and reloaded it says the same"
        start = tmp_path / kind / "model"


@pytest.mark.slow
@pytest.mark.parametrize("name", FAST)
def test_the_stage_trains_it(name: str, ray_cluster: None, root: Path, tmp_path: Path) -> None:
    """On Ray Train and DeepSpeed, and as one process does without them."""
    start = make_family(name, root)
    made = preferences(name, root, candidates(name, transformers_samples(name, root)))
    for kind in KINDS:
        out = tmp_path / f"stage_{kind}"
        encoded(kind, made[kind], tmp_path / kind)
        train(
            Run(tmp_path, lambda line: None, max_dead_share=0.0),
            settings(len(made[kind]), lora=False),
            kind,
            data=tmp_path / kind / f"{kind}.parquet",
            start=start,
            out=out,
        )
        curves: pa.Table = read_parquet(out / "curves.parquet")
        trainer = step(kind, start, made[kind], tmp_path / kind, lora=False)
        (loss,) = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        assert curves["loss"].to_pylist() == pytest.approx([loss], rel=1e-4)
        check_export(name, start, out / "model", made["rsft"])
        start = out / "model"
