"""How a command ends: quiet libraries, an error in one line, an exit code that says whose it is (`aqe.errors`)."""

import contextlib
import errno
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

from aqe.errors import KINDS, AqeError, StorageError
from aqe.observe.lines import FOLLOWED, Ended
from aqe.observe.progress import say

#: Progress is said by the stages, one line each ten seconds. What the libraries say beside it stays in Ray's log files.
#: Nobody is told of a run (docs/privacy.md).
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    "DS_LOG_LEVEL": "error",
}

#: How Ray writes an error of ours that was raised where an actor starts: it hands on its text alone.
RAISED = re.compile(r"^aqe\.errors\.(\w+): (.+)$", re.MULTILINE)


@contextlib.contextmanager
def quietly(debug: bool = False) -> Iterator[None]:
    """Silence the libraries, and say a user's error in one line, with its exit code (`aqe.errors`).

    `debug` shows the traceback too. What is no error of the user's keeps it: that is a fault to report.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ |= {name: value for name, value in QUIET.items() if name not in os.environ}
    if not Path("/dev/nvidiactl").exists():
        # DeepSpeed finds this out too, with a warning in every process.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        yield
    except KeyboardInterrupt:
        _end("\nInterrupted. The same command resumes: what is finished is kept.")
        raise SystemExit(130) from None
    except Exception as error:
        said = _ours(error)
        if said is None:
            raise
        kind, message = said
        _end(f"{traceback.format_exc() if debug else ''}{kind.__name__}: {message}")
        raise SystemExit(kind.exit_code) from None


def _end(message: str) -> None:
    """Say why a command ends: to its follower where it has one."""
    if FOLLOWED in os.environ:
        say(Ended(message))
    else:
        print(message, file=sys.stderr, flush=True)


def _ours(error: BaseException) -> tuple[type[AqeError], str] | None:
    """(kind, message) of the error of aqe's that another one was raised for, or None.

    A Ray task's error carries its cause; that of an actor that could not start has it in its text alone.
    """
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        cause = getattr(one, "cause", None)
        # What ray.get raises is of both kinds, and its text is the whole traceback.
        if isinstance(one, AqeError) and not isinstance(cause, AqeError):
            return type(one), str(one)
        context = None if one.__suppress_context__ else one.__context__
        one = cause if isinstance(cause, BaseException) else one.__cause__ or context
    for one in seen:
        for name, message in RAISED.findall(str(one)):
            if name in KINDS:
                return KINDS[name], message
        if isinstance(one, OSError) and one.errno == errno.ENOSPC:
            return StorageError, f"no space is left ({one}). Make room and run again: what is finished is kept."
    return None
