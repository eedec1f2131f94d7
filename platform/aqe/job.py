"""What all jobs share: the command line, the connection to Ray, and errors without a traceback."""

import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aqe.config.pipeline import load_config
from aqe.errors import AqeError, ConfigError
from aqe.observe.progress import duration, say

if TYPE_CHECKING:
    from aqe.pipeline import Pipeline

SOURCE_ROOT = Path(__file__).parents[1]

#: Progress is said by the stages, one line each ten seconds. What the libraries say beside it stays in Ray's log files.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    "DS_LOG_LEVEL": "error",
}


def main(job: Callable[["Pipeline"], None]) -> None:
    """Run `job` with the pipeline that the command line describes; its docstring is the help text.

    A user's error is printed in one line; the exit code is 2.
    """

    def command(
        config: Annotated[str, typer.Option(help="A preset's name (jobs/presets), or the path of a YAML file.")],
        set_: Annotated[list[str], typer.Option("--set", help="key.path=value, over the file; may be repeated.")] = [],  # noqa: B006
        base_dir: Annotated[
            Path | None, typer.Option(help="Relative paths are below this directory (default: where you are).")
        ] = None,
    ) -> None:
        started = time.monotonic()
        warnings.filterwarnings("ignore", category=FutureWarning)
        os.environ |= {name: value for name, value in QUIET.items() if name not in os.environ}
        if not Path("/dev/nvidiactl").exists():
            # DeepSpeed finds this out too, with a warning in every process.
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        try:
            if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and base_dir is None:
                raise ConfigError(
                    "inside `ray job submit` the working directory is a copy that vanishes with the job. Say where "
                    "relative paths, runs/ among them, are to lie: --base-dir /a/directory/that/all/nodes/share"
                )
            settings = load_config(config, set_, base_dir)
            from aqe.check import check

            check(settings)
            connect()
            from aqe.pipeline import Pipeline

            job(Pipeline(settings))
        except Exception as error:
            # An error of a Ray task carries the one that it was raised for.
            cause = getattr(error, "cause", error)
            if not isinstance(cause, AqeError):
                raise
            print(f"{type(cause).__name__}: {cause}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        say(f"done in {duration(time.monotonic() - started)}")

    command.__doc__ = job.__doc__
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (as inside `ray job submit`), or start Ray on this machine."""
    import logging

    import ray

    options: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": True}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {
            "address": "local",
            # Ray Train asks the dashboard whether its controller lives, and says each second that nobody answers.
            "include_dashboard": True,
            "runtime_env": {"env_vars": {"PYTHONPATH": str(SOURCE_ROOT), **QUIET}},
        }
    ray.init(**options)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
