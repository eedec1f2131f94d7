"""What every stage of one run shares: where its artifacts lie, who is told, what it costs, what may go wrong."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aqe.artifact import Artifact, Build, Wanted, make_all
from aqe.config.pipeline import PipelineConfig, PriceConfig
from aqe.dead_letters import common, letters_of, listed, reasons_of
from aqe.errors import DeadLetterError
from aqe.nodes import NodeKind, Nodes, nodes_of
from aqe.observe.cost import describe
from aqe.observe.lines import Line
from aqe.observe.progress import Say, duration, live, say
from aqe.titles import title
from aqe.track import Trackers


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
    trackers: Trackers = field(default_factory=Trackers)
    """Where curves and results are logged too."""
    used: set[str] = field(default_factory=set, repr=False)
    """Names of the artifacts that were asked for, whether made or found."""
    _titles: dict[str, str] = field(default_factory=dict, repr=False)
    """Of those, and of those that are being made."""

    @classmethod
    def of(cls, config: PipelineConfig) -> "Run":
        """The run that a configuration describes."""
        trackers = Trackers.of(config)
        return cls(config.run_dir, say, config.price_per_hour, config.max_dead_share, trackers=trackers)

    def title(self, out: Path, stage: str) -> str:
        """What people call the stage that fills the directory `out`; `stage` where nobody asked for it by `make`."""
        return self._titles.get(out.name, stage)

    def note(self, out: Path, stage: str, text: str) -> None:
        """Say something of that stage that is to stay in sight."""
        self.say(f"{self.title(out, stage)}: {text}")

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

        def build_one(missing: Mapping[int, Path]) -> Iterator[tuple[int, Mapping[str, Any]]]:
            for i, path in missing.items():
                if live():
                    self.say(Line(self.title(path, stage), "starts"))
                yield i, build(path)

        return self.make_all([wanted], build_one)[0]

    def make_all(self, wanted: Sequence[Wanted], build: Build) -> list[Artifact]:
        """`aqe.artifact.make_all` below this run's directory.

        Says what was made, and once what an earlier run has made. Logs both where the configuration names a tracker.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        wanted = [replace(one, title=title(one)) for one in wanted]
        self._titles.update({one.name: one.title for one in wanted})

        def with_dead(missing: Mapping[int, Path]) -> Iterator[tuple[int, Mapping[str, Any]]]:
            return ((i, _with_dead(missing[i], stats)) for i, stats in build(missing))

        def found(title: str, artifact: Artifact) -> None:
            if (name := artifact.path.name) not in self.used:
                self.used.add(name)
                self.say(Line(title, f"done before, {name}", "found"))
                self.trackers.log(title, artifact)

        def made(title: str, artifact: Artifact) -> None:
            stats = artifact.stats
            self.used.add(artifact.path.name)
            self.say(Line(title, f"made in {duration(stats['wall_seconds'])}, {describe(stats, self.price)}", "made"))
            self.trackers.log(title, artifact)

        artifacts = make_all(self.root, wanted, with_dead, found=found, made=made)
        self.used.update(artifact.path.name for artifact in artifacts)
        return artifacts

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
