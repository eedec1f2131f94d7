"""Everything that can be found wrong before compute is spent."""

import os
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path

from aqe import track
from aqe.align.check import check_align, check_lora
from aqe.base_model import Checked, check_model
from aqe.config.align import AlignConfig
from aqe.config.base import Config
from aqe.config.pipeline import PipelineConfig
from aqe.config.sample import PASSAGE, QUERY, PromptConfig
from aqe.config.sources import SPLITS, AnseriniCorpus, ReverseDictionary, ReverseDictionaryQueries
from aqe.config.splits import origins
from aqe.corpus import contract, formats
from aqe.corpus.script import other_script
from aqe.errors import ConfigError, DataError, InputError
from aqe.index.jvm import anserini_jar, java_home
from aqe.index.lucene import check_language
from aqe.observe.progress import say
from aqe.prompts import check_prompt, render, resolve, token_ids
from aqe.sample.engine import refusal
from aqe.sample.load import choose_engine, cpu_build
from aqe.synthetic.cleaning import MAX_TOKENS


def check(config: PipelineConfig) -> Checked | None:
    """Raise ConfigError, InputError or DependencyError that says what is wrong and what to do.

    Returns the model that was looked at, None for a packaged one.
    """
    _writable(config.run_dir)
    _readable(config)
    _language(config)
    stored = config.corpus.path if isinstance(config.corpus, AnseriniCorpus) else None
    for key, index in (("index.path", config.index.path), ("corpus.path", stored)):
        if index is not None and not list(index.glob("segments_*")):
            raise InputError(f"{key}: {index} is not a Lucene index (it has no file segments_...)")
    _fits(config)
    track.check(config.track)
    stages = "_".join(config.align.stages)
    if config.align.stages != AlignConfig().stages and config.models != (stages,):
        say(f"align.stages is what `aqe align` trains ({stages}); `aqe run` trains models: {', '.join(config.models)}.")
    java_home()
    anserini_jar()
    checked = check_model(config.model, config.engine.name)
    # Whether there is a GPU, the cluster knows; where vLLM is the one for CPUs there is none.
    choose_engine(config.engine, use_gpu=not cpu_build(), model=None if checked is None else checked.path)
    if checked is not None:
        for prompt in _prompts(config):
            check_prompt(prompt, checked.tokenizer)
        _in_context(config, checked)
    if "filtered" in config.evaluate.systems and checked is not None:
        from aqe.evaluate.filter import check_filter

        check_filter(checked.path)
    check_align(config.align)
    if config.align.lora is not None and checked is not None:
        check_lora(config.align.lora, checked.path)
    return checked


def _writable(run_dir: Path) -> None:
    """A directory can be made there, and files in it."""
    there = next(path for path in (run_dir, *run_dir.parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"runs_dir: {there} is a file, so {run_dir} cannot be made. Name a directory.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"runs_dir: {there} cannot be written, so {run_dir} cannot be made. Name another directory.")


def _language(config: PipelineConfig) -> None:
    """The analyzer is there; and where passages are plainly of another script, that is said."""
    language = config.index.language
    if language != "en":
        # A JVM stays with its process, and Ray and a JVM bear each other badly in one.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            apart.submit(check_language, language, config.index.jvm_heap).result()
        return
    if isinstance(config.corpus, AnseriniCorpus | ReverseDictionary):
        return
    other = other_script(contract.first_texts(formats.passages(config.corpus)))
    if other is not None:
        script, languages = other
        say(
            f"warning: most letters of the first passages are {script}, and index.language is en: the English analyzer "
            f"cuts such texts badly. Set index.language to {' or '.join(languages)}."
        )


def _readable(config: PipelineConfig) -> None:
    """Each source is there, and its first rows have the columns that are needed."""
    if config.queries.all is None:
        asked = [(f"queries.{split}", source) for split in SPLITS for source in config.queries.sources(split)]
    else:
        asked = [("queries.all", source) for source in config.queries.sources("train")]
    for key, source in [("corpus", config.corpus), *asked]:
        _exist(key, source)
    for (key, source), (other, same) in combinations(asked, 2):
        if source == same and key != other:
            raise DataError(
                f"{key} and {other} are the same queries: what trains cannot test. Name another file, or deal one out: "
                "queries: {all: ..., split: {train: 0.8, dev: 0.1, test: 0.1}}."
            )
    if any(isinstance(one, ReverseDictionary | ReverseDictionaryQueries) for _, one in [("", config.corpus), *asked]):
        from aqe.corpus.reverse_dictionary import check_packages

        check_packages()
    if not isinstance(config.corpus, AnseriniCorpus):
        _columns("corpus", formats.passages(config.corpus), "corpus")
    for key, source in asked:
        judged = formats.qrels(source)
        if judged is not None:
            _columns(f"{key}.qrels", judged, "qrels")
        for origin in origins(source):
            read = formats.queries(source, origin if isinstance(origin, Path) else None)
            there = _columns(key, read, "queries")
            if judged is None and not there & {"answers", "positives"}:
                raise DataError(f"{key}: {origin} does not say what is relevant. {contract.unjudged(read)}")


def _columns(key: str, source: formats.Source, kind: str) -> set[str]:
    """Which of our columns a source has. DataError where it has no row at all."""
    there = contract.probe(source, kind)
    if not there:
        raise DataError(
            f"{key}: {', '.join(map(str, source.paths)) or source.called} holds no row. Is it the right one?"
        )
    return there


def _exist(key: str, source: Config) -> None:
    """Every path of a source is there."""
    for name, value in source:
        if isinstance(value, Config):
            _exist(f"{key}.{name}", value)
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path):
                _exists(f"{key}.{name}", path)


def _fits(config: PipelineConfig) -> None:
    """Numbers that cannot work together."""
    longest = max(config.sample.max_tokens, config.evaluate.max_tokens or 0)
    if longest >= config.engine.max_model_len:
        raise ConfigError(
            f"max_tokens is {longest}; engine.max_model_len ({config.engine.max_model_len}) must hold the prompt too. "
            "Raise engine.max_model_len or lower sample.max_tokens."
        )
    named: dict[str, PromptConfig] = {}
    for prompt in _prompts(config):
        if named.setdefault(prompt.name, prompt) != prompt:
            raise ConfigError(f"two different prompts are named {prompt.name!r}; give each a name of its own")


def _in_context(config: PipelineConfig, model: Checked) -> None:
    """What is generated fits into the model, with room for each prompt; longer queries become dead letters."""
    longest = max(config.sample.max_tokens, config.evaluate.max_tokens or 0)
    if model.context is not None and longest >= model.context:
        raise ConfigError(
            f"max_tokens is {longest}; {model.path} was made for {model.context} tokens, which must hold the prompt "
            "too. Lower sample.max_tokens (and evaluate.max_tokens), or name another model."
        )
    limit = min(config.engine.max_model_len, model.context or config.engine.max_model_len)
    greedy = config.evaluate.max_tokens or config.sample.max_tokens
    asked = [(config.sample_prompt, config.sample.max_tokens)]
    asked += [(prompt, greedy) for prompt in (config.prompt, *config.evaluate.zero_shot_prompts)]
    rendered = [(resolve(named), max_tokens) for named, max_tokens in asked]
    for prompt, max_tokens in [*rendered, *((prompt, MAX_TOKENS) for prompt in _asking(config))]:
        text = render(prompt, "query", model.tokenizer)
        if why := refusal(text, token_ids(model.tokenizer, text), max_tokens, limit):
            what, how = ("query", "Lower max_tokens, raise") if prompt.place == QUERY else ("passage", "Raise")
            raise ConfigError(
                f"prompt {prompt.name!r} leaves no room for a {what} of one word: {why}. {how} engine.max_model_len "
                "where the model was made for more, or choose a shorter prompt."
            )


def _prompts(config: PipelineConfig) -> list[PromptConfig]:
    prompts = (config.prompt, config.sample_prompt, *config.evaluate.zero_shot_prompts)
    return [*map(resolve, prompts), *_asking(config)]


def _asking(config: PipelineConfig) -> list[PromptConfig]:
    """What asks the base model for queries."""
    return [resolve(source.prompt, PASSAGE) for source in config.queries.asked.values()]


def _exists(key: str, path: Path) -> None:
    if not path.exists():
        raise InputError(
            f"{key}: {path} does not exist. Relative paths are below the directory of the configuration's file (a "
            "preset's: where you are), or below --base-dir."
        )
    if not os.access(path, os.R_OK):
        raise InputError(f"{key}: {path} may not be read by this user. Change its permissions, or name a copy.")
