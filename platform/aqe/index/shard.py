"""One document shard of the impact index: a file that is mapped into memory and shared by all processes of a machine.

Passages are numbered in the order of their docids (bytes), so that a tie is decided by comparing numbers. They lie in
blocks of `BLOCK`; a posting is its passage's place in the block (2 bytes) and a code (1 byte) that stands for one pair
of term frequency and length byte: the 255 pairs that occur most, some 99.9 % of all postings of a passage corpus. The
others have the code ESCAPE and stand in the `rare` arrays besides. A term's postings of one block are a run. The file
is safetensors, with counts and checksums in its header.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from aqe.errors import ArtifactError
from aqe.storage import put

VERSION = "1"
#: Passages of a block. Two float32 sums of each stay in the second-level cache.
BLOCK = 16_384
#: The code of a posting that is among the rare ones.
ESCAPE = 255

U8: TypeAlias = npt.NDArray[np.uint8]
U16: TypeAlias = npt.NDArray[np.uint16]
U32: TypeAlias = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Arrays:
    """V terms in byte order, N passages in the order of their docids, P postings, R runs, O rare postings."""

    term_bytes: U8
    term_starts: U32  # (V + 1,) into term_bytes
    df: U32  # (V,) in the whole corpus
    posting_starts: U32  # (V + 1,) into docs and codes
    run_starts: U32  # (V + 1,) into run_blocks and run_sizes
    run_blocks: U16  # (R,)
    run_sizes: U16  # (R,) postings of the run, less one
    docs: U16  # (P,) place in the block, ascending within a run
    codes: U8  # (P,)
    code_tf: U32  # (255,)
    code_length: U8  # (255,)
    rare_terms: U32  # (O,) ascending
    rare_docs: U32  # (O,) ascending within a term
    rare_tf: U32  # (O,)
    rare_length: U8  # (O,)
    docid_bytes: U8
    docid_starts: U32  # (N + 1,) into docid_bytes


@dataclass(frozen=True)
class Shard:
    """An open shard."""

    path: Path
    arrays: Arrays
    scored_passages: int
    total_terms: int
    analyzer: str

    @property
    def num_passages(self) -> int:
        """Passages in this shard."""
        return len(self.arrays.docid_starts) - 1

    def docid(self, doc: int) -> str:
        """Docid of a passage by its number."""
        starts = self.arrays.docid_starts
        return self.arrays.docid_bytes[starts[doc] : starts[doc + 1]].tobytes().decode()


def write_shard(path: Path, arrays: Arrays, *, scored_passages: int, total_terms: int, analyzer: str) -> None:
    """Write a shard whole or not at all."""
    tensors = {f.name: np.ascontiguousarray(getattr(arrays, f.name)) for f in fields(arrays)}
    header = {
        "version": VERSION,
        "block": str(BLOCK),
        "scored_passages": str(scored_passages),
        "total_terms": str(total_terms),
        "analyzer": analyzer,
        "crc32": json.dumps({name: _crc(array) for name, array in tensors.items()}),
    }
    header["header_crc32"] = _header_crc(header)
    put(path, lambda part: save_file(tensors, part, metadata=header))


def open_shard(path: Path, *, check: bool = True) -> Shard:
    """Map a shard into memory. ArtifactError when it is missing, cut short, changed, or of another version."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if not 0 < length < size:
                raise ValueError("its header is longer than the file")
            layout: dict[str, Any] = json.loads(f.read(length))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist. Run build_impacts.") from None
    except (ValueError, struct.error) as error:
        raise ArtifactError(_corrupt(path, str(error))) from None
    header: Mapping[str, str] = layout.get("__metadata__", {}) if isinstance(layout, dict) else {}
    if header.get("version") != VERSION or header.get("block") != str(BLOCK):
        raise ArtifactError(
            f"{path} has the format {header.get('version')!r} with blocks of {header.get('block')}, this program reads "
            f"{VERSION!r} with blocks of {BLOCK}. Remove the directory and run build_impacts again."
        )
    start = 8 + length
    types = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32}
    if header.get("header_crc32") != _header_crc(header):
        raise ArtifactError(_corrupt(path, "the checksum of its header is another one"))
    checksums = json.loads(header["crc32"])
    mapped = np.memmap(path, np.uint8, "r").view(np.ndarray)
    arrays: dict[str, Any] = {}
    for field in fields(Arrays):
        entry = layout.get(field.name)
        if entry is None:
            raise ArtifactError(_corrupt(path, f"it has no {field.name}"))
        begin, end = entry["data_offsets"]
        if start + end > size:
            raise ArtifactError(_corrupt(path, "it is cut short"))
        array = mapped[start + begin : start + end].view(types[entry["dtype"]])
        if check and _crc(array) != checksums[field.name]:
            raise ArtifactError(_corrupt(path, f"the checksum of {field.name} is another one"))
        arrays[field.name] = array
    return Shard(path, Arrays(**arrays), int(header["scored_passages"]), int(header["total_terms"]), header["analyzer"])


def _header_crc(header: Mapping[str, str]) -> str:
    rest = {key: value for key, value in header.items() if key != "header_crc32"}
    return str(zlib.crc32(json.dumps(rest, sort_keys=True).encode()))


def _crc(array: npt.NDArray[Any]) -> int:
    return zlib.crc32(array.view(np.uint8).data)


def _corrupt(path: Path, why: str) -> str:
    return f"{path} is corrupt: {why}. Remove its directory and run build_impacts again."


def shard_paths(directory: Path) -> list[Path]:
    """Files of all shards of an impact index, in the order of their docids. ArtifactError when there are not all."""
    paths = sorted(directory.glob("impacts-*.safetensors"))
    if not paths:
        raise ArtifactError(f"{directory} holds no impact index. Run build_impacts.")
    count = int(paths[0].stem.rsplit("-", 1)[1])
    if [path.name for path in paths] != [shard_name(i, count) for i in range(count)]:
        raise ArtifactError(f"{directory} does not hold just the {count} shards of one index. Run build_impacts again.")
    return paths


def open_shards(directory: Path) -> list[Shard]:
    """All shards of an impact index, in the order of their docids. ArtifactError: see shard_paths and open_shard."""
    shards = [open_shard(path) for path in shard_paths(directory)]
    for shard in shards:
        if (shard.scored_passages, shard.total_terms) != (shards[0].scored_passages, shards[0].total_terms):
            raise ArtifactError(f"{shard.path} and {shards[0].path} are of two corpora. Run build_impacts again.")
    return shards


def shard_name(number: int, count: int) -> str:
    """File name of one shard of `count`."""
    return f"impacts-{number:05d}-of-{count:05d}.safetensors"


def text_column(values: Iterable[bytes]) -> tuple[U8, U32]:
    """Byte strings as one array and the places where each starts. OverflowError beyond 4 GiB."""
    parts = list(values)
    starts = np.zeros(len(parts) + 1, np.uint64)
    np.cumsum([len(part) for part in parts], out=starts[1:])
    if len(parts) and starts[-1] >= 2**32:
        raise OverflowError("the texts of one shard exceed 4 GiB: use more shards")
    return np.frombuffer(b"".join(parts), np.uint8), starts.astype(np.uint32)
