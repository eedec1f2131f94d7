"""TRL's losses and gradients on our rows, against a float64 computation by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from aqe.align.arguments import Kind, arguments
from aqe.align.divergence import COMPARED_ROWS, completion_logps, divergence, write_reference
from aqe.align.export import export_model
from aqe.align.tokens import IGNORED, load_tokens, write_tokens
from aqe.align.trainers import build_trainer, trl_config
from aqe.align.worker import load_model
from aqe.config.align import AlignConfig
from aqe.errors import ConfigError
from tests.tools.align import make_model, make_tokenizer, write_rows
from tests.tools.families import make_family

ROWS = 12


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def trainer_of(kind: Kind, start: Path, directory: Path, config: AlignConfig) -> tuple[Any, list[dict[str, Any]]]:
    """The trainer a worker would build, in this process and without DeepSpeed, and its rows."""
    tokenizer = AutoTokenizer.from_pretrained(start)
    write_tokens(kind, write_rows(kind, ROWS, directory / "rows.parquet"), 64, directory / "tokens.arrow")
    fields = arguments(
        kind, config, output_dir=str(directory), use_gpu=False, micro=ROWS, accumulation=1, deepspeed=None
    )
    dataset = load_tokens(str(directory / "tokens.arrow"))
    trainer = build_trainer(
        kind,
        model=load_model(str(start), kind),
        tokenizer=tokenizer,
        dataset=dataset,
        args=trl_config(kind, fields),
        lora=None,
    )
    return trainer, dataset.to_list()


def log_probs(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probability of each completion token, nats."""
    ids = torch.tensor([prompt + completion])
    logits = model(ids).logits[0].log_softmax(-1)
    return torch.stack([logits[len(prompt) + i - 1, token] for i, token in enumerate(completion)])


def sft_by_hand(model: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """Mean negative log-probability over all completion tokens."""
    terms = []
    for row in rows:
        length = sum(label == IGNORED for label in row["labels"])
        terms.append(log_probs(model, row["input_ids"][:length], row["input_ids"][length:]))
    return -torch.cat(terms).mean()


def dpo_by_hand(model: Any, reference: Any, rows: list[dict[str, Any]], beta: float) -> torch.Tensor:
    """Mean over pairs of -log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected))."""
    losses = []
    for row in rows:
        margins = []
        for side in ("chosen_ids", "rejected_ids"):
            with torch.no_grad():
                base = log_probs(reference, row["prompt_ids"], row[side]).sum()
            margins.append(log_probs(model, row["prompt_ids"], row[side]).sum() - base)
        losses.append(-logsigmoid(beta * (margins[0] - margins[1])))
    return torch.stack(losses).mean()


def move(model: Any) -> None:
    """Step away from the start, so that policy and reference differ."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator).to(weight.dtype)


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("kind", ["rsft", "dpo"])
def test_loss_and_gradients_equal_the_computation_by_hand(kind: Kind, beta: float, start: Path, tmp_path: Path) -> None:
    config = AlignConfig.model_validate({"dpo": {"beta": beta}})
    trainer, rows = trainer_of(kind, start, tmp_path, config)
    move(trainer.model)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    loss.backward()

    reference = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float64)
    policy = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float64)
    policy.load_state_dict({name: weight.double() for name, weight in trainer.model.state_dict().items()})
    expected: Any = sft_by_hand(policy, rows) if kind == "rsft" else dpo_by_hand(policy, reference, rows, beta)
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    truth = torch.cat([w.grad.flatten() for w in policy.parameters()])
    got = torch.cat([w.grad.flatten().double() for w in trainer.model.parameters()])
    assert torch.linalg.vector_norm(got - truth) < 1e-5 * torch.linalg.vector_norm(truth)


def test_a_list_of_losses_adds_the_likelihood_of_the_chosen(start: Path, tmp_path: Path) -> None:
    both = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.25]}
    trainer, rows = trainer_of("dpo", start, tmp_path, AlignConfig.model_validate({"dpo": both}))
    move(trainer.model)
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    reference = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float64)
    policy = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float64)
    policy.load_state_dict({name: weight.double() for name, weight in trainer.model.state_dict().items()})
    chosen = torch.cat([log_probs(policy, row["prompt_ids"], row["chosen_ids"]) for row in rows])
    expected = dpo_by_hand(policy, reference, rows, 0.1) - 0.25 * chosen.mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_batch_that_trl_builds_holds_our_labels(start: Path, tmp_path: Path) -> None:
    trainer, rows = trainer_of("rsft", start, tmp_path, AlignConfig())
    batch = next(iter(trainer.get_train_dataloader()))
    learned = sorted(tuple(x for x in row if x != IGNORED) for row in batch["labels"].tolist())
    assert learned == sorted(tuple(x for x in row["labels"] if x != IGNORED) for row in rows)


def test_reference_log_probabilities_are_of_the_start_model_and_kept_on_disk(start: Path, tmp_path: Path) -> None:
    trainer, rows = trainer_of("dpo", start, tmp_path, AlignConfig())
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float64)
    for row, kept in zip(rows, trainer.train_dataset, strict=True):
        assert kept["ref_chosen_logps"] == pytest.approx(
            log_probs(model, row["prompt_ids"], row["chosen_ids"]).sum().item(), rel=1e-5
        )
    assert list(tmp_path.glob("cache-*.arrow"))


def dbrx(directory: Path, jitter: float) -> Path:
    """A model that has its dropout and its router's jitter in parts of its configuration."""
    tokenizer = make_tokenizer()
    experts = {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "moe_jitter_eps": jitter}
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": len(tokenizer)}
    config = AutoConfig.for_model(
        "dbrx",
        **sizes,
        attn_config={"kv_n_heads": 2, "attn_pdrop": 0.2, "rope_theta": 1e4, "clip_qkv": 8.0},
        ffn_config=experts,
    )
    return saved(config, directory)


def phimoe(directory: Path) -> Path:
    """A model that draws its experts while it trains."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    tokenizer = make_tokenizer()
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": None}
    return saved(AutoConfig.for_model("phimoe", vocab_size=len(tokenizer), **sizes, **experts, **ids), directory)


def saved(config: Any, directory: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for weight in model.parameters():
        if weight.dim() >= 2:
            torch.nn.init.normal_(weight, std=0.15)
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("family", ["opt", "gpt2", "mixtral", "dbrx"])
def test_nothing_is_random_in_dpo(family: str, tmp_path: Path) -> None:
    """Policy and reference are one model at the start, whatever its class drops at random: the loss is log 2."""
    start = dbrx(tmp_path / "dbrx", jitter=0.3) if family == "dbrx" else make_family(family, tmp_path)
    published = json.loads((start / "config.json").read_text())
    if family == "mixtral":
        published["router_jitter_noise"] = 0.3
        (start / "config.json").write_text(json.dumps(published))
    plain = AutoModelForCausalLM.from_pretrained(start).train()
    ids = torch.arange(3, 30)[None]
    assert not torch.equal(plain(ids).logits, plain(ids).logits), "the start model is random while it trains"
    trainer, rows = trainer_of("dpo", start, tmp_path, AlignConfig())
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)

    # The model that comes of it says of itself what the start model does.
    task: dict[str, Any] = {"start": str(start), "tokens": str(tmp_path / "tokens.arrow")}
    task |= {"bfloat16": False, "use_gpu": False}
    write_reference("dpo", **task, out=str(tmp_path / "reference"))
    trainer.save_model(str(tmp_path / "trained"))
    logps = completion_logps("dpo", trainer.model, rows[:COMPARED_ROWS])
    export_model("dpo", **task, trained=str(tmp_path / "trained"), out=str(tmp_path / "model"), logps=logps)
    assert json.loads((tmp_path / "model/config.json").read_text()) == published


def test_a_model_that_stays_random_is_refused_before_dpo(tmp_path: Path) -> None:
    start, task = phimoe(tmp_path / "phimoe"), {"tokens": str(tmp_path / "tokens.arrow"), "out": str(tmp_path / "out")}
    write_tokens("dpo", write_rows("dpo", 4, tmp_path / "rows.parquet"), 64, tmp_path / "tokens.arrow")
    with pytest.raises(ConfigError, match=r"cannot train the model in .*phimoe.*Set align\.stages to \[rsft\]"):
        write_reference("dpo", start=str(start), **task, bfloat16=False, use_gpu=False)
    assert not (tmp_path / "out").exists()
    write_tokens("rsft", write_rows("rsft", 4, tmp_path / "rows.parquet"), 64, tmp_path / "tokens.arrow")
    write_reference("rsft", start=str(start), **task, bfloat16=False, use_gpu=False)


@pytest.mark.parametrize("kind", ["rsft", "dpo"])
def test_divergence_is_zero_at_the_start_and_exact_elsewhere(kind: Kind, start: Path, tmp_path: Path) -> None:
    _, rows = trainer_of(kind, start, tmp_path, AlignConfig())
    reference = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    assert divergence(kind, model, reference, rows)["kl_per_token"] == pytest.approx(0, abs=1e-7)
    move(model)
    measured = divergence(kind, model, reference, rows)
    total, tokens = 0.0, 0
    for row in rows:
        prompt = (
            row["prompt_ids"]
            if kind == "dpo"
            else [i for i, x in zip(row["input_ids"], row["labels"], strict=True) if x == IGNORED]
        )
        full = prompt + row["chosen_ids"] if kind == "dpo" else row["input_ids"]
        with torch.no_grad():
            p, q = (m.double()(torch.tensor([full])).logits[0].log_softmax(-1) for m in (model, reference))
        total += sum((p[i].exp() * (p[i] - q[i])).sum().item() for i in range(len(prompt) - 1, len(full) - 1))
        tokens += len(full) - len(prompt)
    assert measured["kl_per_token"] == pytest.approx(total / tokens, rel=1e-4)
    assert measured["kl_per_token"] > 0
