"""What a run takes on this machine where no GPU is seen, and the smaller one that would fit it."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aqe.config.command_line import QUERIES, CommandLine
from aqe.cost import CORE, Cost, cost, rough
from aqe.machine import cores, has_gpu, memory
from aqe.observe.lines import in_job
from aqe.sizes import size
from aqe.smollm2 import PARAMETERS

#: Hours from which on something smaller is offered.
LONG = 2


@dataclass(frozen=True)
class Cores:
    """A machine without a GPU: its cores, and the bytes of its memory."""

    number: int
    memory: int

    def hours(self, plan: Cost) -> tuple[float, float]:
        """Hours to generate and to train, at most: at the rate of one core, times the cores."""
        generation, training = plan.hours(CORE)
        return generation / self.number, training / self.number


def advice(asked: CommandLine, plan: Cost, command: Sequence[str] | None = None) -> Iterator[str]:
    """Lines for a person before `command` (`aqe run`, as this program was called) does what is asked.

    None where a cluster does it, or where there is a GPU.
    """
    # Inside of a job, whoever submitted it has said it.
    if os.environ.get("RAY_ADDRESS") or in_job() or has_gpu():
        return
    smaller = asked.smaller
    small = None if asked.small else lambda: cost(smaller.load(), PARAMETERS)
    yield from compare(plan, Cores(cores(), memory()[0]), small, shlex.join([*(command or _run()), *smaller.options]))


def compare(plan: Cost, there: Cores, small: Callable[[], Cost] | None, typed: str) -> Iterator[str]:
    """The plan's hours, whether the memory is enough, and where it is not or the hours are many, what is smaller.

    `small` counts what `typed` asks for; None where the plan is that one already. Nothing is said of a model whose size
    only its weights tell.
    """
    if plan.parameters is None:
        return
    generation, training = there.hours(plan)
    cores = f"{there.number} cores" if there.number > 1 else "one core"
    yield (
        f"No GPU is seen here: on {cores} this takes up to {_time(generation + training)} ({_time(generation)} to "
        f"generate, {_time(training)} to train)."
    )
    enough = plan.memory <= there.memory
    if not enough:
        yield (
            f"warning: to train this model without a GPU takes {size(plan.memory)} of memory or more, and this machine "
            f"has {size(there.memory)}."
        )
    if small is not None and (not enough or generation + training >= LONG):
        yield (
            f"A first try, with a model of 135 M parameters, {QUERIES} queries of each source and 8 candidates each, "
            f"takes up to {_time(sum(there.hours(small())))}, and what reading and indexing the corpus takes. Type:"
        )
        yield f"  {typed}"


def _run() -> list[str]:
    """How a run is typed by who has typed this program."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return [sys.executable, "-m", "aqe", "run"]
    return [sys.executable, str(program)] if program.suffix == ".py" else [str(program), "run"]


def _time(hours: float) -> str:
    """Two digits of it, or minutes."""
    return f"{rough(hours)} hours" if hours >= 1 else f"{max(1, round(60 * hours))} min"
