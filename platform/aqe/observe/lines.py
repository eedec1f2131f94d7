"""What a run says, line by line. A line about a stage has parts, so that a terminal can keep one live line per stage.

Lines are printed as plain text. Where somebody follows the run (`aqe.observe.screen`), each is one line of JSON behind
a mark instead: whatever has no mark comes from Ray or another package, and goes to a log file.
"""

import json
import os
from typing import Any, Literal, get_args

#: Set in the environment of a run that is followed, and of its workers: `live` where a terminal shows it, else `log`.
FOLLOWED = "AQE_FOLLOWED"
MARK = "@aqe "


def in_job() -> bool:
    """Whether this process is the driver of a `ray job submit`: whoever submitted it follows it, if anybody does."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


State = Literal["runs", "made", "found"]
"""`found`: an earlier run made it."""


class Line(str):
    """A line about a stage, as text for a log. `about` is the text without the stage's title, `share` what is done.

    A line without a share names what a worker is at before anything can be counted.
    """

    stage: str
    about: str
    state: State
    share: float | None

    def __new__(cls, stage: str, about: str, state: State = "runs", share: float | None = None) -> "Line":
        line = super().__new__(cls, f"{stage}: {about}")
        line.stage, line.about, line.state, line.share = stage, about, state, share
        return line


class Ended(str):
    """The one line of an error of the user's, which ends a run."""


def encoded(message: str) -> str:
    """A message as one marked line, whatever it holds."""
    if isinstance(message, Line):
        return MARK + json.dumps(vars(message))
    return MARK + json.dumps({"ended" if isinstance(message, Ended) else "text": message})


def decoded(line: str) -> str | None:
    """The message of a line, with its parts; None where the line is not ours.

    Ray puts the worker's name before a line, and may put how often it was said after it.
    """
    _, mark, rest = line.partition(MARK)
    if not mark:
        return None
    try:
        said: Any = json.JSONDecoder().raw_decode(rest)[0]
    except ValueError:
        return None
    match said:
        case {"stage": str(stage), "about": str(about), "state": state, "share": share} if state in get_args(State):
            return Line(stage, about, state, share)
        case {"ended": str(text)}:
            return Ended(text)
        case {"text": str(text)}:
            return text
    return None
