"""How far, how fast, how long still, what is being made: one line every few seconds, and gauges."""

import os
import time
from collections import Counter
from collections.abc import Callable

from tqdm import tqdm

from aqe.observe import metrics
from aqe.observe.lines import FOLLOWED, Line, encoded

Say = Callable[[str], None]

#: Seconds between two lines on the progress of a stage, by who follows the run.
EVERY = {"live": 1.0, "log": 10.0}


def say(message: str) -> None:
    """Print at once: a job's log is followed live."""
    print(encoded(message) if FOLLOWED in os.environ else message, flush=True)


def live() -> bool:
    """Whether a terminal shows what this process says. A log needs no line that says nothing but that work began."""
    return os.environ.get(FOLLOWED) == "live"


def every() -> float:
    """Seconds between two lines on the progress of a stage of this process."""
    return EVERY[os.environ.get(FOLLOWED, "log")]


def duration(seconds: float) -> str:
    """`75` -> `01:15`."""
    return str(tqdm.format_interval(max(0, round(seconds))))


def show(stage: str, done: float, left: float | None) -> None:
    """Export the share of a stage that is done, and the seconds that it still takes where they are known."""
    metrics.level(metrics.DONE, done, stage=stage)
    if left is not None:
        metrics.level(metrics.ETA, left, stage=stage)


def hide(stage: str) -> None:
    """The stage runs no longer."""
    for name in (metrics.DONE, metrics.ETA, metrics.UNITS_LEFT):
        metrics.forget(name, stage=stage)


class Progress:
    """Counts work and says one line at most every few seconds, and one at the end. A context: the stage's life.

    Gauges are exported by the name `stage`, lines begin with its `title`. `already` items were done by an earlier run:
    they count as done, not in the rate.
    """

    def __init__(
        self, stage: str, total: int, noun: str, say: Say, *, already: int = 0, title: str | None = None
    ) -> None:
        self._stage, self.total, self._noun, self._say, self._every = stage, total, noun, say, every()
        self._title = title or stage
        self._already, self._done = already, 0
        self._counts: Counter[str] = Counter()
        self._started = self._last = time.monotonic()
        if already:
            say(Line(self._title, f"{already} of {total} {noun} were done before", share=already / max(total, 1)))

    def __enter__(self) -> "Progress":
        show(self._stage, self._already / max(self.total, 1), None)
        return self

    def __exit__(self, *error: object) -> None:
        hide(self._stage)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def update(self, done: int, **counts: float) -> None:
        """`done` more items; `counts` are other things made meanwhile (tokens, candidates), shown as rates."""
        now = time.monotonic()
        self._done += done
        self._counts.update({k: v for k, v in counts.items()})  # type: ignore[arg-type]
        share = (self._done + self._already) / max(self.total, 1)
        show(self._stage, share, self.left if self._done else None)
        if self._done + self._already >= self.total or now - self._last >= self._every:
            self._last = now
            self._say(Line(self._title, self.about(), share=share))

    @property
    def left(self) -> float:
        """Seconds until the end at the rate so far; infinite before anything is done."""
        if not self._done:
            return float("inf")
        return self.seconds / self._done * (self.total - self._done - self._already)

    def about(self) -> str:
        """What would be said now."""
        seconds = max(self.seconds, 1e-9)
        rate = self._done / seconds
        done = self._done + self._already
        parts = [
            f"{done}/{self.total} {self._noun} ({100 * done / max(self.total, 1):.0f} %)",
            f"{rate:.2f} {self._noun}/s",
            *(f"{value / seconds:.0f} {name}/s" for name, value in self._counts.items()),
        ]
        if done < self.total and self._done:
            parts.append(f"ETA {duration(self.left)}")
        else:
            parts.append(f"took {duration(seconds)}")
        return ", ".join(parts)
