"""The code as one zip, for clusters that fetch it: `runtime_env: {working_dir: https://.../aqe-....zip}`.

usage: python -m cluster.package [DIRECTORY]

The same files give the same bytes. The name holds their checksum, because Ray keeps what it has fetched by address: a
new zip under an old address would never be read.
"""

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("platform", "jobs", "serve", "cluster")
#: Where zip's calendar begins.
EPOCH = (1980, 1, 1, 0, 0, 0)


def tracked(root: Path) -> list[str]:
    """Files of the code that git knows, so that nobody's scratch files and secrets travel."""
    done = subprocess.run(["git", "ls-files", "-z", "--", *CODE], cwd=root, capture_output=True, check=True, text=True)
    return sorted(name for name in done.stdout.split("\0") if (root / name).is_file())


def zipped(root: Path, names: list[str]) -> bytes:
    """A zip of these files. Several folders lie at its top: of a single one Ray would strip the name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name, EPOCH)
            mode = 0o755 if (root / name).stat().st_mode & 0o100 else 0o644
            info.external_attr = (0o100000 | mode) << 16
            archive.writestr(info, (root / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def package(root: Path, out: Path) -> Path:
    """Write `out`/aqe-CHECKSUM.zip, and its checksum beside it as `sha256sum --check` reads it."""
    content = zipped(root, tracked(root))
    checksum = hashlib.sha256(content).hexdigest()
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"aqe-{checksum[:12]}.zip"
    path.write_bytes(content)
    path.with_name(f"{path.name}.sha256").write_text(f"{checksum}  {path.name}\n")
    return path


def main() -> None:
    """Write the zip and say where."""
    path = package(ROOT, Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist")
    print(f"{path} ({path.stat().st_size / 1e3:.0f} kB), checksum in {path.name}.sha256")


if __name__ == "__main__":
    main()
