"""The command `aqe`: a verb for each stage, which jobs/ share, and what looks before and after a run."""

import contextlib
import shutil
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aqe.config.command_line import CommandLine
from aqe.config.pipeline import PRESETS, PipelineConfig, load_config
from aqe.config.sources import SPLITS
from aqe.connection import connect
from aqe.errors import ConfigError, DependencyError, StorageError
from aqe.exits import quietly
from aqe.observe.lines import in_job
from aqe.observe.progress import duration, say
from aqe.observe.screen import log_file, screened

if TYPE_CHECKING:
    from aqe.base_model import Checked
    from aqe.pipeline import Pipeline

#: What a run needs beside the core: packages, and the extras that bring them.
NEEDS = {"ray": "ray", "trl": "train", "pyserini": "lucene"}

ConfigName = Annotated[
    str, typer.Option("--config", help="A preset's name (`aqe presets` lists them), or the path of a YAML file.")
]
Overrides = Annotated[list[str], typer.Option("--set", help="key.path=value, over the file; may be repeated.")]
BaseDir = Annotated[
    Path | None,
    typer.Option(
        "--base-dir",
        help="Relative paths are below this directory (default: that of the file; for a preset, where you are).",
    ),
]
RunDirectory = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, such as runs/demo.")]

Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="At most so many queries of each source: for a quick try.")
]
Small = Annotated[
    bool,
    typer.Option("--small", help="What two cores can do: a model of 135 M parameters, 8 candidates, --limit 200."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]

# Rich's own markup would take [rsft, dpo] in a docstring for a style.
_program = partial(typer.Typer, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")

app = _program(
    no_args_is_help=True, help="Aligned Query Expansion: an LLM learns to write the one expansion that BM25 needs."
)


def checked(asked: CommandLine) -> tuple[PipelineConfig, "Checked | None"]:
    """The configuration and its model, after all has been looked at that can be found wrong before compute."""
    inside = in_job()
    if inside and asked.base_dir is None and asked.directory.is_relative_to(Path.cwd()):
        raise ConfigError(
            "inside `ray job submit` the working directory is a copy that vanishes with the job. Say where "
            "relative paths, runs/ among them, belong: --base-dir /a/directory/that/all/nodes/share"
        )
    config, name = asked.load(), asked.config
    if config.run_dir.name != Path(name).stem:
        say(f"{name}: the run is called {config.name}")
    missing = {package: extra for package, extra in NEEDS.items() if find_spec(package) is None}
    if missing:
        raise DependencyError(
            f"this needs what is not installed here: {', '.join(missing)}. "
            f"In a checkout of aqe: pip install '.[{','.join(missing.values())}]'"
        )
    from aqe.check import check

    return config, check(config)


def _plan(asked: CommandLine, config: PipelineConfig, model: "Checked | None") -> None:
    """Say what a run takes. StorageError where the disk cannot hold the half of it: it is an estimate.

    What lies in the run's directory already is not written again by a run that is resumed.
    """
    from aqe.advice import advice
    from aqe.cost import bytes_below, cost
    from aqe.smollm2 import PARAMETERS

    plan = cost(config, PARAMETERS if model is None else model.parameters)
    for line in (*plan.lines(), *advice(asked, plan)):
        say(line)
    there = next(path for path in (config.run_dir, *config.run_dir.parents) if path.exists())
    free, held = shutil.disk_usage(there).free, bytes_below(config.run_dir)
    if free < plan.disk / 2 - held:
        before = f", of which {held / 1e9:.1f} GB are there" if held else ""
        raise StorageError(
            f"runs_dir: this run takes some {plan.disk / 1e9:.1f} GB{before}, and {there} has {free / 1e9:.1f} GB "
            "left. Make room, or name a directory on another disk."
        )
    if free < plan.disk - held:
        say(f"warning: {there} has {free / 1e9:.1f} GB left, which may be too little")


Verb = Callable[[str, list[str], Path | None, int | None, bool, bool], None]


def verb(stage: Callable[["Pipeline"], None]) -> Verb:
    """Make `stage` a command of its name: it gets the pipeline that the command line describes."""

    def command(
        config: ConfigName,
        set_: Overrides = [],  # noqa: B006
        base_dir: BaseDir = None,
        limit: Limit = None,
        small: Small = False,
        debug: Debug = False,
    ) -> None:
        started = time.monotonic()
        with quietly(debug):
            asked = CommandLine(config, tuple(set_), base_dir, limit, small)
            configured, model = checked(asked)
            if stage.__name__ == "run":
                _plan(asked, configured, model)
            with screened(log_file(configured.run_dir)):
                connect()
                from aqe.pipeline import Pipeline

                pipeline = Pipeline(configured)
                with pipeline.run.trackers:
                    stage(pipeline)
        say(f"done in {duration(time.monotonic() - started)}")

    command.__doc__ = stage.__doc__
    return app.command(stage.__name__)(command)


def main(command: Verb) -> None:
    """Run one verb as a program, which is what a job is."""
    job = _program()
    job.command()(command)
    job()


@verb
def run(pipeline: "Pipeline") -> None:
    """The whole loop: sample, rank, prefer, align (RSFT, then DPO), expand, evaluate."""
    from aqe.comparison import Comparison

    comparison = Comparison(pipeline)
    comparison.prepare()
    say(comparison.evaluate())


@verb
def index(pipeline: "Pipeline") -> None:
    """Corpus -> Lucene index."""
    say(f"{pipeline.index.stats['passages']} passages in {pipeline.index.path}")


@verb
def impacts(pipeline: "Pipeline") -> None:
    """Lucene index -> impact index, for exact gold ranks."""
    stats = pipeline.impacts.stats
    size = f"{stats['bytes_per_posting']} bytes each"
    say(f"{stats['postings']} postings of {stats['passages']} passages, {size}, in {pipeline.impacts.path}")


@verb
def judge(pipeline: "Pipeline") -> None:
    """Queries -> qrels, from their positives or by their answers over the whole corpus."""
    for split in SPLITS:
        judged = pipeline.judged(split)
        stats = judged.stats
        say(f"{split}: {stats['judged']} of {stats['queries']} queries have a relevant passage, {judged.path}")


@verb
def sample(pipeline: "Pipeline") -> None:
    """Training queries -> candidate expansions."""
    samples = pipeline.samples()
    stats = samples.stats
    shares = ", ".join(f"{stats[flag]} {flag}" for flag in ("truncated", "empty", "duplicate"))
    say(f"{stats['candidates']} candidates ({shares})")
    say(
        f"engine {stats['engine']}, {stats['tokens']} tokens, {stats['tokens_per_worker_second']} per second and worker"
    )
    say(str(samples.path))


@verb
def rank(pipeline: "Pipeline") -> None:
    """Candidates -> exact gold ranks."""
    ranks = pipeline.ranks()
    # A stage that was resumed knows no rate.
    rate = [f"{ranks.stats['ranks_per_second']} ranks/s"] if "ranks_per_second" in ranks.stats else []
    say(", ".join([f"{ranks.stats['ranks']} ranks", *rate, str(ranks.path)]))


@verb
def prefer(pipeline: "Pipeline") -> None:
    """Samples and ranks -> RSFT and DPO sets."""
    for name, value in pipeline.preferred().stats.items():
        say(f"{name:24} {value}")
    say(str(pipeline.preferred().path))


@verb
def align(pipeline: "Pipeline") -> None:
    """Preferences -> an aligned model, by the stages that `align.stages` names: [rsft, dpo], or either alone."""
    name = "_".join(pipeline.config.align.stages)
    model = pipeline.model(pipeline.aligned(name))
    pipeline.publish(name)
    for stat, value in model.stats.items():
        say(f"{stat:24} {value}")
    say(str(model.path / "model"))


@verb
def evaluate(pipeline: "Pipeline") -> None:
    """Aligned models -> report: greedy expansions of held-out queries, searched and compared."""
    from aqe.comparison import Comparison

    say(Comparison(pipeline).evaluate())


@app.command()
def check(
    config: ConfigName,
    set_: Overrides = [],  # noqa: B006
    base_dir: BaseDir = None,
    limit: Limit = None,
    small: Small = False,
    debug: Debug = False,
) -> None:
    """Find what would stop a run, before it costs anything, and say what it takes at most."""
    with quietly(debug):
        asked = CommandLine(config, tuple(set_), base_dir, limit, small)
        configured, model = checked(asked)
        _plan(asked, configured, model)
        say(f"{config}: nothing is wrong; a run writes its artifacts to {configured.run_dir}")


@app.command()
def doctor(
    config: Annotated[
        str | None, typer.Option("--config", help="Look with the settings of this configuration.")
    ] = None,
    set_: Overrides = [],  # noqa: B006
    base_dir: BaseDir = None,
) -> None:
    """Print what this machine has, what each stage uses here, and what is wrong; exit code 4 where something is."""
    with quietly():
        from aqe.doctor import Settings, examine
        from aqe.machine import look

        settings, directory = Settings(), Path("runs")
        if config is not None:
            own = load_config(config, set_, base_dir)
            settings, directory = Settings(own.engine, own.rank, own.align), own.run_dir
        diagnosis = examine(look([directory]), NEEDS, settings)
        for line in diagnosis.lines():
            say(line)
    if diagnosis.wrong:
        raise typer.Exit(4)


@app.command()
def expand(
    model: Annotated[str, typer.Argument(help="A model's directory, a hub id, or package:NAME.")],
    query: Annotated[str, typer.Argument()],
    debug: Debug = False,
) -> None:
    """What an aligned model adds to a query, and the query to search with."""
    with quietly(debug):
        from aqe import Expander

        expansion = Expander.load(model).expand(query)
        say(f"expansion  {expansion.text}\ncomposed   {expansion.composed}")


@app.command()
def verify(
    run_directory: RunDirectory,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove what is broken and what was made from it: the run makes it again.")
    ] = False,
) -> None:
    """Read all files of a run's artifacts, and say which have changed; exit code 4 if one has."""
    with quietly():
        from aqe import mend

        broken = mend.verify_run(run_directory, say)
        if broken and remove:
            mend.remove(run_directory, broken, say)
            say(f"{len(broken)} broken: removed. The command that made {run_directory} makes again what is missing.")
    if broken and not remove:
        raise typer.Exit(4)


@app.command()
def retry(run_directory: RunDirectory) -> None:
    """Take back what failed in a run, row by row, and what was made from it: the same command tries it again."""
    with quietly():
        from aqe import mend

        if mend.retry_run(run_directory, say):
            say(f"The command that made {run_directory} tries these rows again, and makes again what is missing.")
        else:
            say("nothing to retry: rows that were refused on reading are read again when the input has changed")


@app.command()
def runs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where runs lie, or one run.")] = Path("runs"),
) -> None:
    """List the runs below a directory: stages, size on disk, age, and the report if there is one."""
    with quietly():
        from aqe.runs import lines

        for line in lines(directory):
            say(line)


@app.command()
def report(
    run_directory: RunDirectory,
    serve: Annotated[bool, typer.Option("--serve", help="Show the page in a browser of this machine.")] = False,
    port: Annotated[int, typer.Option("--port", help="Where --serve listens; 0 takes a free port.")] = 8080,
) -> None:
    """Print the summary of a run's newest report again, and where its page is."""
    with quietly():
        from aqe.report.closing import closing, find
        from aqe.report.serving import HOST, server

        newest = find(run_directory)
        say(closing(run_directory, newest))
        if serve:
            with server(newest.path, port) as pages:
                say(f"http://{HOST}:{pages.server_port}/ shows the page until you press Ctrl-C")
                with contextlib.suppress(KeyboardInterrupt):
                    pages.serve_forever()


@app.command()
def clean(
    run_directory: RunDirectory,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it, after you have seen what it is.")] = False,
) -> None:
    """Show what can go from a run, what stays and why; the same command never has to make anything again for it."""
    with quietly():
        from aqe.clean import clean, plan

        if remove:
            clean(run_directory, say)
        for line in plan(run_directory).lines(run_directory):
            say(line)
        if not remove:
            say(f"Nothing was removed. `aqe clean {run_directory} --remove` removes what can go.")


@app.command()
def presets() -> None:
    """The configurations that come with the package."""
    for path in sorted(PRESETS.glob("*.yaml")):
        about = path.read_text().partition("\n")[0].removeprefix("# ")
        say(f"{path.stem:12} {about}")
