"""What every stage of one run shares: where its artifacts lie, who is told, what it costs, what may go wrong."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aqe.artifact import Artifact, Build, Wanted, make_all
from aqe.config.pipeline import PriceConfig
from aqe.dead_letters import common, letters_of, listed, reasons_of
from aqe.errors import DeadLetterError
from aqe.nodes import NodeKind, Nodes, nodes_of
from aqe.observe.cost import describe
from aqe.observe.progress import Say, duration, say


@dataclass(frozen=True)
class Run:
    """One run. A stage's function takes it first, then its part of the configuration, then the artifacts it reads."""

    root: Path
    """Directory of the run's artifacts."""
    say: Say = say
    price: PriceConfig = field(default_factory=PriceConfig)
    max_dead_share: float = 0.01
    """A stage fails when more than this share of its rows could not be processed."""
    nodes: Callable[[NodeKind], Nodes] = nodes_of
    """The nodes of a kind that are up now."""
    used: set[str] = field(default_factory=set, repr=False)
    """Names of the artifacts that were asked for, whether made or found."""
    _said: set[str] = field(default_factory=set, repr=False)

    def make(
        self,
        stage: str,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, Artifact | str],
        build: Callable[[Path], Mapping[str, Any]],
        parents: tuple[Artifact, ...] = (),
        packages: tuple[str, ...] = (),
    ) -> Artifact:
        """One artifact below this run's directory, see `aqe.artifact.Wanted`; `build` fills its directory."""
        wanted = Wanted(stage, config, inputs, parents, packages)
        return self.make_all([wanted], lambda missing: ((i, build(path)) for i, path in missing.items()))[0]

    def make_all(self, wanted: Sequence[Wanted], build: Build) -> list[Artifact]:
        """`aqe.artifact.make_all` below this run's directory. Says what was made, and once what was there before."""
        self.root.mkdir(parents=True, exist_ok=True)

        def with_dead(missing: Mapping[int, Path]) -> Iterator[tuple[int, Mapping[str, Any]]]:
            return ((i, _with_dead(missing[i], stats)) for i, stats in build(missing))

        def made(stage: str, stats: Mapping[str, Any]) -> None:
            self.say(f"{stage}: made in {duration(stats['wall_seconds'])}, {describe(stats, self.price)}")

        artifacts = make_all(self.root, wanted, with_dead, say=self._say_once, made=made)
        self.used.update(artifact.path.name for artifact in artifacts)
        return artifacts

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self.say(message)

    def check_dead(self, stage: str, letters: Path, dead: int, total: int) -> None:
        """DeadLetterError when too many of `total` rows are in the dead letters at `letters`."""
        if dead <= self.max_dead_share * total:
            return
        raise DeadLetterError(
            f"{stage}: {dead} of {total} rows could not be processed, more than max_dead_share = "
            f"{self.max_dead_share:g}. Reasons: {common(reasons_of(letters))}. All are in {letters}. Mend the cause "
            "and run again: what is finished is kept."
        )


def _with_dead(out: Path, stats: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stage's statistics with the number of its dead letters and their reasons, if there are some."""
    letters = letters_of(out)
    reasons = Counter[str]() if letters is None else reasons_of(letters)
    return {"dead": reasons.total(), **stats, "dead_reasons": listed(reasons)} if reasons else stats
