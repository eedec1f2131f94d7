"""Shows a run to a person: in a terminal one live line per stage, elsewhere plain lines. All else goes to a log file.

A run that is followed marks its own lines (`aqe.observe.lines`). Those are shown; what Ray and the packages print
around them is kept in the log, where it can be read in its order. What it says of a fault is shown too: the messages of
`ALARMS` at once, and the end of the log when the run breaks off without a word of its own.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from aqe.observe.lines import FOLLOWED, Ended, Line, decoded, in_job
from aqe.observe.progress import duration

#: What others say that a person must see while the run goes on: work that waits for ever, memory, disks, nodes.
ALARMS = re.compile(
    r"cannot be scheduled|insufficient resources|out of memory|\bOOM\b|no space left|node .* (died|was killed)|"
    r"worker died|segmentation fault|fatal python error",
    re.IGNORECASE,
)
#: Of a run that breaks off, at most so many of the last lines that had no mark.
SHOWN_AT_THE_END = 40
#: What Ray puts before a line that a task on this machine printed.
PREFIX = re.compile(r"^(\x1b\[\d+m)?\([^ ]+ pid=\d+[^)]*\)(\x1b\[\d+m)? ?")


def log_file(run_dir: Path) -> Path:
    """A new file for all that a run prints, below its directory."""
    return run_dir / "logs" / time.strftime("%Y-%m-%d-%H%M%S.log")


def shown_live(stream: int) -> bool:
    """Whether a person sees this stream in a terminal whose lines can be written again."""
    return os.isatty(stream) and os.environ.get("TERM") != "dumb"


class Screen:
    """A context that shows lines as they are taken. `log` gets every one, as plain text."""

    def __init__(self, log: Path, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, force_terminal=shown_live(1))
        self._path = log
        self._running: dict[str, tuple[Line, float]] = {}
        """What was last said of each running stage, and since when it runs."""
        self._over: set[str] = set()
        """Stages that have ended. What a worker has said of one may come after that."""
        self._others: deque[str] = deque(maxlen=SHOWN_AT_THE_END)
        self._alarms: set[str] = set()
        self._spinner = Spinner("dots", style="cyan")
        self._life = contextlib.ExitStack()
        self.ended = False
        """Whether the run has said the error that ends it."""

    @property
    def mode(self) -> str:
        """What the run is told of its follower, see `FOLLOWED`."""
        return "live" if self._console.is_terminal else "log"

    def __enter__(self) -> "Screen":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        log = self._path.open("a", encoding="utf-8", errors="replace")
        self._log: TextIO | None = self._life.enter_context(log)
        self.show(f"What Ray and other packages print goes to {self._path}", "dim")
        if self._console.is_terminal:
            live = Live(
                get_renderable=self._lines,
                console=self._console,
                refresh_per_second=5,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._life.enter_context(live)
        return self

    def __exit__(self, *error: object) -> None:
        # What a full disk did not take is tried again when the log is closed.
        with contextlib.suppress(OSError):
            self._life.close()

    def _keep(self, line: str) -> None:
        """Log a line. A run outlives a disk that is full for a moment, so its log must not end it."""
        if self._log is not None:
            try:
                self._log.write(f"{line}\n")
                self._log.flush()
            except OSError as error:
                self._log = None
                self.show(f"{self._path} cannot be written any more: {error}", "yellow")

    def take(self, line: str) -> None:
        """One line of what a run prints, without its end."""
        message = decoded(line)
        self._keep(line if message is None else message)
        if message is None:
            self._other(line)
        elif isinstance(message, Line):
            self._stage(message)
        elif isinstance(message, Ended):
            self.ended = True
            self.show(message, "red")
        else:
            self.show(message)

    def broken_off(self) -> None:
        """The run is over and has not said why: show the end of what others said, from the last traceback on."""
        shown = list(self._others)
        starts = [i for i, line in enumerate(shown) if "Traceback (most recent call last)" in line]
        for line in shown[starts[-1] if starts else 0 :]:
            self.show(line)
        self.show(f"All of it is in {self._path}", "red")

    def _stage(self, line: Line) -> None:
        if line.state == "runs":
            if line.stage in self._over:
                return
            last, since = self._running.get(line.stage, (line, time.monotonic()))
            # A worker that comes late loads while others have work done.
            late = line.share is None and last.share is not None
            self._running[line.stage] = last if late else line, since
            if self._console.is_terminal:
                return
        else:
            self._running.pop(line.stage, None)
            self._over.add(line.stage)
        if not self._console.is_terminal:
            self.show(line)
        elif line.state == "found":
            self.show(f"· {line}", "dim")
        else:
            took, comma, cost = line.about.partition(", ")
            text = Text.assemble(("✓ ", "green"), (line.stage, "bold"), f"  {took}", (f"{comma}{cost}", "dim"))
            self._console.print(text, soft_wrap=True)

    def _other(self, line: str) -> None:
        shown = PREFIX.sub("", line).rstrip()
        if not shown:
            return
        self._others.append(shown)
        # The same alarm comes again and again, with other numbers in it.
        if ALARMS.search(shown) and (alike := re.sub(r"[\d.]+|0x\w+", "", shown)) not in self._alarms:
            self._alarms.add(alike)
            self.show(shown, "yellow")

    def show(self, text: str, style: str = "") -> None:
        """Print above the live lines."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _lines(self) -> Group:
        """One line for each stage that runs, never longer than the terminal is wide."""
        rows = []
        for stage, (line, since) in list(self._running.items()):
            row = Table.grid(padding=(0, 1))
            row.add_column(width=1)
            row.add_column(no_wrap=True, overflow="ellipsis")
            took = duration(time.monotonic() - since)
            row.add_row(self._spinner, Text.assemble((stage, "bold"), f"  {line.about}  ", (took, "dim")))
            rows.append(row)
        return Group(*rows)


@contextlib.contextmanager
def screened(log: Path) -> Iterator[None]:
    """Whatever this process and its workers print goes through a Screen in a process of its own.

    So lines are shown as long as the run is busy, and nothing that C code prints gets past it. Where the run is
    followed already, or there is no real standard output (in a notebook), nothing is changed. On an error the streams
    are as before when it leaves here, so that it is seen.
    """
    try:
        streams = [sys.stdout.fileno(), sys.stderr.fileno()]
    except (OSError, ValueError, AttributeError):
        streams = []
    if FOLLOWED in os.environ or in_job() or streams != [1, 2]:
        yield
        return
    reading, writing = os.pipe()
    source = str(Path(__file__).parents[2])
    follower = subprocess.Popen(
        # What lies where the user is must not come before Python's own library.
        [sys.executable, "-P", "-m", "aqe.observe.screen", str(log)],
        stdin=reading,
        # Ctrl-C is for the run, which says so and ends.
        process_group=0,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))},
    )
    os.close(reading)
    saved = [os.dup(stream) for stream in streams]
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in streams:
        os.dup2(writing, stream)
    os.close(writing)
    os.environ[FOLLOWED] = "live" if shown_live(saved[0]) else "log"
    try:
        yield
    finally:
        # A follower that died must not hide why the run ended.
        with contextlib.suppress(OSError):
            print(OVER, flush=True)
            sys.stderr.flush()
        for stream, kept in zip(streams, saved, strict=True):
            os.dup2(kept, stream)
            os.close(kept)
        del os.environ[FOLLOWED]
        follower.wait()


#: The last line of a run that ends by itself. Not the end of the stream: a process that outlives it may hold that open.
OVER = "@aqe over"


def main() -> None:
    """Show what comes from standard input, until it is over."""
    # C code and Java print what they like.
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    with Screen(Path(sys.argv[1])) as screen:
        for line in sys.stdin:
            if line.rstrip("\n") == OVER:
                break
            screen.take(line.rstrip("\n"))
        else:
            # Killed, or crashed in C code.
            screen.broken_off()


if __name__ == "__main__":
    main()
