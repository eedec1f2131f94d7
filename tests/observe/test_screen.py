"""What a person sees of a run: live lines in a terminal, plain ones elsewhere, and nothing of Ray's but faults."""

import io
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aqe.observe.lines import FOLLOWED, Ended, Line, decoded, encoded
from aqe.observe.progress import Progress, say
from aqe.observe.screen import Screen

ROOT = Path(__file__).parents[2]
LOADING = Line("train DPO after RSFT", "loading the model")
STEP = Line("train DPO after RSFT", "step 3/20, loss 0.6931", share=0.15)
MADE = Line("train DPO after RSFT", "made in 01:20, 0.04 CPU hours", "made")
FOUND = Line("read the corpus", "done before, corpus-0123456789abcdef", "found")


@pytest.mark.parametrize("message", ["one line", "a table\n| of | two |", LOADING, STEP, MADE, FOUND, Ended("E: why")])
def test_a_marked_line_says_what_was_said(message: str) -> None:
    line = encoded(message)
    assert "\n" not in line
    for printed in (line, f"\x1b[36m(ask_base pid=7)\x1b[0m {line}", f"{line} [repeated 3x across cluster]"):
        heard = decoded(printed)
        assert heard == message and type(heard) is type(message)
        if isinstance(message, Line) and isinstance(heard, Line):
            assert vars(heard) == vars(message)


@pytest.mark.parametrize("line", ["", "corpus: 7 passages", "@aqe not JSON", '@aqe {"other": 1}', '@aqe ["text"]'])
def test_what_has_no_mark_is_not_ours(line: str) -> None:
    assert decoded(line) is None


def test_a_run_marks_its_lines_only_where_it_is_followed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(FOLLOWED, raising=False)
    say(STEP)
    monkeypatch.setenv(FOLLOWED, "log")
    say(STEP)
    plain, marked = capsys.readouterr().out.splitlines()
    assert plain == "train DPO after RSFT: step 3/20, loss 0.6931" and decoded(marked) == STEP


def terminal(width: int = 100) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=width, color_system=None, legacy_windows=False), out


def test_a_terminal_keeps_one_line_for_a_stage_until_it_ends(tmp_path: Path) -> None:
    console, out = terminal()
    with Screen(tmp_path / "logs" / "run.log", console) as screen:
        assert screen.mode == "live"
        screen.take(encoded(LOADING))
        first = [line.plain for line in rendered(screen)]
        screen.take(encoded(STEP))
        # A second worker loads while the first has work done.
        screen.take(encoded(LOADING))
        [second] = [line.plain for line in rendered(screen)]
        screen.take(encoded(MADE))
        assert rendered(screen) == []
        # Ray may bring a worker's line after the driver's last one.
        screen.take(encoded(STEP))
        assert rendered(screen) == []
        screen.take(encoded(FOUND))
    assert first[0].startswith("train DPO after RSFT  loading the model  00:0")
    assert second.startswith("train DPO after RSFT  step 3/20, loss 0.6931  00:0")
    shown = out.getvalue()
    # What stays is the end of each stage; where it was in between is drawn over.
    assert shown.count("✓ train DPO after RSFT  made in 01:20, 0.04 CPU hours\n") == 1
    assert shown.count("· read the corpus: done before, corpus-0123456789abcdef\n") == 1
    assert "step 3/20, loss 0.6931\n" not in shown


def rendered(screen: Screen) -> list[Text]:
    """The texts of the live lines."""
    grids = screen._lines().renderables
    cells = [cell for grid in grids if isinstance(grid, Table) for column in grid.columns for cell in column.cells]
    return [cell for cell in cells if isinstance(cell, Text)]


def test_a_live_line_is_never_longer_than_the_terminal(tmp_path: Path) -> None:
    console, _ = terminal(width=60)
    with Screen(tmp_path / "run.log", console) as screen:
        screen.take(encoded(Line("draw 16 candidates for train from the base model", "3/614 queries (1 %), " * 9)))
        with console.capture() as drawn:
            console.print(screen._lines())
    [line] = drawn.get().splitlines()
    assert len(line) <= 60 and line.rstrip().endswith("…")


def test_elsewhere_lines_are_plain_and_come_in_their_order(tmp_path: Path) -> None:
    out = io.StringIO()
    long = Line("rank train's candidates", "88/614 queries (14 %), 8.75 queries/s, 149 ranks/s, ETA 01:00", share=0.14)
    with Screen(tmp_path / "run.log", Console(file=out, width=40)) as screen:
        assert screen.mode == "log"
        for message in (LOADING, long, MADE, FOUND, "a [bold]table[/bold]\n| of | two |"):
            screen.take(encoded(message))
    lines = out.getvalue().splitlines()
    assert lines == [
        f"What Ray and other packages print goes to {tmp_path / 'run.log'}",
        str(LOADING),
        str(long),
        str(MADE),
        str(FOUND),
        "a [bold]table[/bold]",
        "| of | two |",
    ]


NOISE = (
    "2026-11-30 14:55:12,502 INFO job_manager.py:581 -- Runtime env is setting up.",
    "\x1b[36m(PlacementGroupCleaner pid=9)\x1b[0m Found multiple active Ray instances",
    "\x1b[36m(TrainController pid=9)\x1b[0m [E 9 9060] core_worker.cc:2465: Actor with class name: 'PreemptionWatcher'",
    "(RayTrainWorker pid=9) Reporting training result 1: TrainingReport(checkpoint=...)",
)
PENDING = "(autoscaler +12s) Warning: The following resource request cannot be scheduled right now: {'GPU': 1.0}."


def test_what_others_print_is_in_the_log_alone(tmp_path: Path) -> None:
    console, out = terminal()
    with Screen(tmp_path / "run.log", console) as screen:
        for line in (*NOISE, encoded(FOUND)):
            screen.take(line)
    assert not any(word in out.getvalue() for word in ("job_manager", "Placement", "Preemption", "Reporting"))
    assert (tmp_path / "run.log").read_text().splitlines() == [*NOISE, str(FOUND)]


def test_what_a_person_must_know_of_is_shown_once(tmp_path: Path) -> None:
    console, out = terminal(width=200)
    with Screen(tmp_path / "run.log", console) as screen:
        for line in (PENDING, PENDING.replace("12s", "72s"), "(raylet) node 10.0.0.7 died", *NOISE):
            screen.take(line)
    assert out.getvalue().count("cannot be scheduled right now") == 1
    assert out.getvalue().count("node 10.0.0.7 died") == 1


def test_a_run_that_breaks_off_shows_its_traceback_and_where_the_rest_is(tmp_path: Path) -> None:
    console, out = terminal(width=200)
    fault = ["Traceback (most recent call last):", '  File "x.py", line 1, in <module>', "KeyError: 'seed'"]
    with Screen(tmp_path / "run.log", console) as screen:
        for line in (*NOISE, *fault):
            screen.take(line)
        assert not screen.ended
        screen.broken_off()
    # Between its lines the cursor is moved.
    shown = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]|\r", "", out.getvalue())
    assert "\n".join(fault) in shown and "job_manager" not in shown and str(tmp_path / "run.log") in shown


def test_the_error_of_a_user_ends_a_run_with_its_word(tmp_path: Path) -> None:
    console, out = terminal()
    with Screen(tmp_path / "run.log", console) as screen:
        screen.take(encoded(Ended("ConfigError: models: there is no such key.")))
        assert screen.ended
    assert "ConfigError: models: there is no such key." in out.getvalue()


@pytest.mark.parametrize(("follower", "most"), [("live", 12), ("log", 3)])
def test_a_terminal_hears_of_progress_more_often_than_a_log(
    follower: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLLOWED, follower)
    said: list[str] = []
    now = 0.0
    monkeypatch.setattr("aqe.observe.progress.time.monotonic", lambda: now)
    counted = Progress("rank_train", 100, "queries", said.append, title="rank train's candidates")
    for _ in range(100):
        now += 0.11
        counted.update(1)
    assert most - 2 <= len(said) <= most
    last = said[-1]
    assert isinstance(last, Line) and last.stage == "rank train's candidates" and last.share == 1.0
    assert last.about.startswith("100/100 queries (100 %), 9.09 queries/s, took 00:11")


#: A run in small: it speaks, C code prints past Python, and it ends as it is told.
PROGRAM = """
import os, sys
from pathlib import Path
from aqe.errors import ConfigError
from aqe.exits import quietly
from aqe.observe.lines import Line
from aqe.observe.progress import say
from aqe.observe.screen import screened

with quietly():
    with screened(Path(sys.argv[1])):
        say(Line("read the corpus", "starts"))
        os.write(2, b"[E 1 1] core_worker.cc:1: noise of C code\\n")
        say(Line("read the corpus", "made in 00:07", "made"))
        say("| a | table |")
        if sys.argv[2] == "error":
            raise ConfigError("this cannot work")
        if sys.argv[2] == "fault":
            raise KeyError("seed")
        if sys.argv[2] == "killed":
            os.write(2, b"Fatal Python error: Segmentation fault\\n")
            os.kill(os.getpid(), 9)
    say("done")
"""


def command(log: Path, end: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(log), end]


def environment() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name != FOLLOWED}
    return env | {"PYTHONPATH": str(ROOT / "platform"), "TERM": "xterm", "COLUMNS": "100"}


@pytest.mark.parametrize(
    ("end", "code", "error"),
    [
        ("well", 0, ""),
        ("error", 2, "ConfigError: this cannot work\n"),
        ("fault", 1, "KeyError: 'seed'\n"),
        ("killed", -9, ""),
    ],
)
def test_a_command_shows_its_own_lines_and_how_it_ended(end: str, code: int, error: str, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.log"
    done = subprocess.run(command(log, end), env=environment(), capture_output=True, text=True, timeout=60)
    # Of a process that was killed, what shows its lines ends a moment later.
    lines = done.stdout.splitlines()
    assert done.returncode == code and done.stderr.endswith(error) and not (error == "" and done.stderr), done.stderr
    assert lines[:4] == [
        f"What Ray and other packages print goes to {log}",
        "read the corpus: starts",
        "read the corpus: made in 00:07",
        "| a | table |",
    ]
    assert ("done" in lines) == (end == "well")
    # A crash is told though nobody was left to tell it.
    assert any("Segmentation fault" in line for line in lines) == (end == "killed")
    assert ("core_worker" in done.stdout) == (end == "killed") and "noise of C code" in log.read_text()


def test_a_command_in_a_terminal_draws_live_lines(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command(tmp_path / "run.log", "well"), env=environment(), stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    shown, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            part = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        shown += part
    os.close(master)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "✓" in text and "made in 00:07" in text and "| a | table |" in text and "done" in text
    assert "core_worker" not in text and "@aqe" not in text


def test_a_log_that_cannot_be_written_ends_no_run() -> None:
    out = io.StringIO()
    with Screen(Path("/dev/full"), Console(file=out, force_terminal=False, width=200)) as screen:
        for line in (encoded(MADE), "Ray says so", encoded(FOUND)):
            screen.take(line)
    shown = out.getvalue()
    assert shown.count("cannot be written any more") == 1 and str(MADE) in shown and str(FOUND) in shown


@pytest.mark.parametrize("variable", [{"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}, {"LANG": "C", "LC_ALL": "C"}])
def test_bytes_that_are_no_text_and_colours_that_are_asked_for_lose_no_line(
    variable: dict[str, str], tmp_path: Path
) -> None:
    said = b"\xff\xfe from C code\n" + encoded(STEP).encode() + b"\n" + encoded(MADE).encode() + b"\n@aqe over\n"
    env = {**os.environ, **variable, "PYTHONPATH": str(ROOT / "platform")}
    command = [sys.executable, "-m", "aqe.observe.screen", str(tmp_path / "log")]
    done = subprocess.run(command, input=said, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    plain = re.sub(r"\x1b\[[\d;]*m", "", done.stdout.decode())
    assert str(MADE) in plain and str(STEP) in plain and "from C code" in (tmp_path / "log").read_text()
