"""A directory that is made whole or not at all, named by the fingerprint of what it depends on.

`runs/<name>/<stage>-<fingerprint>/` holds the data and `manifest.json`. The manifest is written last and atomically:
a directory with one is complete and its data never change again (beside a model's weights, its card and the settings it
is served with may be written anew); one without is unfinished work that the same command resumes. The manifest states
size and checksum of each file that never changes, and nothing is used before it was held against them.
"""

import hashlib
import json
import os
import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from aqe import checksums
from aqe.errors import ArtifactError
from aqe.storage import put, retry

MANIFEST = "manifest.json"
#: Stands in its place while the work is unfinished: what it is made from.
UNFINISHED = "unfinished.json"
#: What an artifact's directory is called.
NAME = re.compile(r".+-[0-9a-f]{16}")
#: May be written anew beside a model's weights: its card, and how it is asked (`Pipeline.publish`).
CHANGING = frozenset({"model/README.md", "model/aqe.json"})
#: What a manifest must say to be one.
_KEYS = {"stage": str, "fingerprint": str, "config": dict, "inputs": dict, "stats": dict}

#: Rows of a group in a file whose rows are read by their numbers (see `Slices`).
GROUP_ROWS = 1_024


@dataclass(frozen=True)
class Artifact:
    """A complete directory and what its manifest says."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def stage(self) -> str:
        """Name of the stage that made it."""
        return str(self.manifest["stage"])

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]] | None:
        """Size and checksum of each file that never changes, by name; None where an older version made it."""
        files: Mapping[str, Mapping[str, Any]] | None = self.manifest.get("files")
        return files

    @property
    def parents(self) -> list[str]:
        """Names of the artifacts that it was made from."""
        return list(self.manifest.get("parents", ()))

    @property
    def stats(self) -> Mapping[str, Any]:
        """Counts, rates and seconds that the stage measured of itself."""
        stats: Mapping[str, Any] = self.manifest["stats"]
        return stats

    def read(self, name: str = "data") -> pa.Table:
        """The Parquet file `name`.parquet, or all files of the directory `name`/ in the order of their names."""
        file = self.path / f"{name}.parquet"
        return read_parquet(file if file.exists() else self.path / name)


def parquet_files(path: Path) -> list[Path]:
    """A Parquet file; or those of a directory in the order of their names, of its `data/` where it is an artifact.

    ArtifactError when there is none.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise ArtifactError(f"{path} does not exist. Is the path right? An artifact is made by running its job again.")
    files = sorted(((path / "data") if (path / "data").is_dir() else path).glob("*.parquet"))
    if not files:
        raise ArtifactError(f"{path} holds no Parquet file. Name one that does, or run again the job that makes it.")
    return files


def read_parquet(path: Path) -> pa.Table:
    """A Parquet file, or a directory of them in the order of their names (rows come in the same order every time)."""
    if path.is_dir():
        return pads.dataset([str(file) for file in parquet_files(path)], format="parquet").to_table()
    (file,) = parquet_files(path)
    return pq.read_table(file)


def write_parquet(data: pa.Table, path: Path, group_rows: int | None = None) -> None:
    """Write so that `path` is either the whole table or as it was. StorageError when the storage refuses for long."""
    put(path, lambda part: pq.write_table(data, part, row_group_size=group_rows))


class Slices:
    """Rows of a Parquet file by their numbers. Holds the last group of rows that was read, not the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts: list[int] | None = None
        self._held: tuple[int, pa.Table] | None = None

    def __len__(self) -> int:
        return self._bounds()[-1]

    def __call__(self, start: int, stop: int) -> pa.Table:
        """Rows `start` to `stop`, without the last."""
        starts = self._bounds()
        first, last = bisect_right(starts, start) - 1, bisect_left(starts, stop)
        groups = [self._group(i) for i in range(max(first, 0), min(last, len(starts) - 1))]
        if not groups:
            return pq.read_schema(self._path).empty_table()
        return pa.concat_tables(groups).slice(start - starts[first], stop - start)

    def _bounds(self) -> list[int]:
        if self._starts is None:
            about = pq.read_metadata(self._path)
            sizes = (about.row_group(i).num_rows for i in range(about.num_row_groups))
            self._starts = list(accumulate(sizes, initial=0))
        return self._starts

    def _group(self, number: int) -> pa.Table:
        if self._held is None or self._held[0] != number:
            with pq.ParquetFile(self._path) as source:
                self._held = number, source.read_row_group(number)
        return self._held[1]


def write_text(text: str, path: Path) -> None:
    """Write so that `path` is either the whole text or as it was. StorageError when the storage refuses for long."""
    put(path, lambda part: part.write_text(text))


def digest(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """16 hex digits of the SHA-256 of a file, or of all files below a directory with their names."""
    if path.is_dir():
        return digest([[str(p.relative_to(path)), file_digest(p)] for p in sorted(path.rglob("*")) if p.is_file()])
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()[:16]


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the packages that change a stage's results; one that is absent is left out."""
    installed = {}
    for package in packages:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def load(path: Path) -> Artifact:
    """Open a complete artifact. ArtifactError when it is not one, or not as it was made: see `verify`."""
    artifact = look(path)
    _hold_to(artifact)
    return artifact


def look(path: Path) -> Artifact:
    """What a manifest says, its files unseen. ArtifactError when there is none, or it is broken."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{path} is not complete (no {MANIFEST}). Run the job that makes it again: it resumes."
        ) from None
    except ValueError as error:
        raise _broken(path, f"{file} is not JSON ({error})") from None
    lacking = [
        key for key, kind in _KEYS.items() if not isinstance(manifest, dict) or type(manifest.get(key)) is not kind
    ]
    if lacking:
        raise _broken(path, f"{file} does not say what a manifest says: {', '.join(lacking)}")
    stated = manifest.get("files", {})
    if not isinstance(stated, dict) or not all(
        isinstance(one, dict) and {"bytes", "sha256"} <= one.keys() for one in stated.values()
    ):
        raise _broken(path, f"{file} does not say what each file was made with")
    return Artifact(path, manifest)


def verify(path: Path, *, patient: bool = False) -> None:
    """ArtifactError unless an artifact, or what lies at `path` in one, is as it was made: no file missing or changed.

    Each file is read once on a node, before it is first used there. What lies in no complete artifact is not looked at,
    nor what an older version made. `patient`: on a node that may see late what another has written, see
    `checksums.flaws`.
    """
    path = path.absolute()
    for directory in (path, *path.parents):
        if NAME.fullmatch(directory.name) and (directory / MANIFEST).exists():
            _hold_to(look(directory), str(path.relative_to(directory)), patient)
            return


def _hold_to(artifact: Artifact, part: str = ".", patient: bool = False) -> None:
    files = artifact.files or {}
    own = {name: stated for name, stated in files.items() if part == "." or f"{name}/".startswith(f"{part}/")}
    if flaws := checksums.flaws(artifact.path, own, patient=patient):
        more = f", and {len(flaws) - 1:,} more of its files are not as they were" if len(flaws) > 1 else ""
        raise _broken(artifact.path, f"{flaws[0]}{more}")


def _broken(path: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"{what}. Nothing of it is read. `aqe verify {path.parent} --remove` removes {path.name} and what was made "
        "from it; the same command then makes them again."
    )


def _lasting(path: Path) -> list[str]:
    """Names of all files of an artifact that never change; what a link leads to belongs to others."""
    names = []
    for directory, below, files in os.walk(path):
        # What is hidden was being written when its writer died.
        below[:] = [name for name in below if not name.startswith(".")]
        own = (Path(directory, name) for name in files if not name.startswith("."))
        names += [str(file.relative_to(path)) for file in own if not file.is_symlink()]
    return [name for name in names if name not in CHANGING | {MANIFEST, UNFINISHED}]


def reopen(artifact: Artifact) -> None:
    """Make it unfinished work again, which the same command resumes."""
    _begin(artifact.path, artifact.parents)
    (artifact.path / MANIFEST).unlink()


def _begin(path: Path, parents: Sequence[str]) -> None:
    write_text(json.dumps({"parents": parents}) + "\n", path / UNFINISHED)


def _timed(stats: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Statistics with the seconds and, where the stage has not counted its own hours, those of one core."""
    hours = {"cpu_hours": round(seconds / 3600, 5), "gpu_hours": 0.0}
    return {**hours, **stats, "wall_seconds": round(seconds, 3)}


@dataclass(frozen=True)
class Wanted:
    """An artifact by what it comes from, which is its name, too.

    `inputs` are other artifacts, or strings that identify what comes from outside (a file's digest, a model's id) or a
    part of an artifact; `parents` are the artifacts that such parts come from: recorded, but no part of the name.
    `packages` are those whose version changes the result. `title` is what people call it, no part of the name.
    """

    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Artifact | str]
    parents: tuple[Artifact, ...] = ()
    packages: tuple[str, ...] = ()
    title: str = ""

    def manifest(self) -> dict[str, Any]:
        """What a manifest says of where the artifact comes from."""
        ids = {name: value.fingerprint if isinstance(value, Artifact) else value for name, value in self.inputs.items()}
        installed = versions(*self.packages)
        named = {"stage": self.stage, "config": self.config, "inputs": ids, "versions": installed}
        origin = [a.path.name for a in (*self.inputs.values(), *self.parents) if isinstance(a, Artifact)]
        return {**named, "fingerprint": digest(named), "parents": origin, "title": self.title or self.stage}

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.stage}-{self.manifest()['fingerprint']}"


#: Fills the directories of what is missing, by its place in what was wanted, and says of each when it is whole.
Build = Callable[[Mapping[int, Path]], Iterator[tuple[int, Mapping[str, Any]]]]


def make_all(
    root: Path,
    wanted: Sequence[Wanted],
    build: Build,
    *,
    found: Callable[[str, Artifact], None] = lambda title, artifact: None,
    made: Callable[[str, Artifact], None] = lambda title, artifact: None,
) -> list[Artifact]:
    """The artifacts that are wanted, in their order; those that are not there are built, together.

    `build` is given the directories of the missing ones. It may find its own unfinished work there. It yields place and
    statistics of each as soon as it is whole: what is whole stays, whatever becomes of the others. `found` is told
    title and artifact of what was there before, `made` of what was not. Raises ArtifactError when another process is
    building one of them, or when what is there is not as it was made.
    """
    manifests = [one.manifest() for one in wanted]
    paths = [root / f"{one['stage']}-{one['fingerprint']}" for one in manifests]
    there: dict[int, Artifact] = {}
    for i, path in enumerate(paths):
        if (path / MANIFEST).exists():
            there[i] = load(path)
            found(manifests[i]["title"], there[i])
    with ExitStack() as locks:
        missing: dict[int, Path] = {}
        # What is wanted twice is built once.
        places = {path: i for i, path in reversed(list(enumerate(paths))) if i not in there}
        for path, i in sorted(places.items()):
            retry(path, partial(path.mkdir, parents=True, exist_ok=True))
            try:
                locks.enter_context(FileLock(root / f".{path.name}.lock", timeout=0))
            except Timeout:
                raise ArtifactError(
                    f"{path} is being built by another process. Wait for it, or stop it and run again."
                ) from None
            if not (path / MANIFEST).exists():  # Another process may have ended between the look above and the lock.
                missing[i] = path
        for i, path in missing.items():
            _begin(path, manifests[i]["parents"])
        began = time.time()
        # In the order in which they are wanted.
        for i, stats in build({i: missing[i] for i in sorted(missing)}) if missing else ():
            path, ended = paths[i], time.time()
            manifest = {
                **manifests[i],
                "stats": _timed(stats, ended - began),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "files": checksums.take(path, _lasting(path)),
            }
            began = ended
            write_text(json.dumps(manifest, indent=1, default=str) + "\n", path / MANIFEST)
            (path / UNFINISHED).unlink(missing_ok=True)
            made(manifest["title"], Artifact(path, manifest))
    return [there[i] if i in there else load(path) for i, path in enumerate(paths)]


def make(
    root: Path,
    stage: str,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact | str],
    build: Callable[[Path], Mapping[str, Any]],
) -> Artifact:
    """The artifact of `stage` for this config and these inputs: `build` fills its directory and returns statistics."""
    wanted = Wanted(stage, config, inputs)
    return make_all(root, [wanted], lambda missing: ((i, build(path)) for i, path in missing.items()))[0]
