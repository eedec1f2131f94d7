"""`make package`: the code as a zip that Ray unpacks into what the deployment imports."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from cluster.package import CODE, package
from tests.tools.cluster import ROOT


def unpack(path: Path, target: Path) -> None:
    from ray._private.runtime_env.packaging import unzip_package

    # As for https, s3 and gs.
    unzip_package(str(path), str(target), remove_top_level_directory=True, unlink_zip=False)


def test_ray_unpacks_it_into_code_that_can_be_imported(tmp_path: Path) -> None:
    path = package(ROOT, tmp_path / "dist")
    code = tmp_path / "code"
    unpack(path, code)
    assert {one.name for one in code.iterdir()} == set(CODE)
    assert os.access(code / "cluster" / "ray", os.X_OK)
    names = "import aqe.config.serve, serve.app, cluster.package as p; print(aqe.__file__, serve.app.__file__, p.ROOT)"
    done = subprocess.run(
        [sys.executable, "-c", names],
        cwd=code,
        env={**os.environ, "PYTHONPATH": f"platform{os.pathsep}."},
        capture_output=True,
        check=True,
        text=True,
    )
    assert all(Path(file).resolve().is_relative_to(code.resolve()) for file in done.stdout.split())


def test_its_name_is_its_content(tmp_path: Path) -> None:
    path = package(ROOT, tmp_path / "one")
    again = package(ROOT, tmp_path / "two")
    assert again.name == path.name and again.read_bytes() == path.read_bytes()
    checksum, name = path.with_name(f"{path.name}.sha256").read_text().split()
    assert checksum == hashlib.sha256(path.read_bytes()).hexdigest() and name == path.name
    assert path.name == f"aqe-{checksum[:12]}.zip"


def test_only_what_git_knows_travels(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "tests").mkdir()
    for name in ("jobs/run.py", "jobs/scratch.py", "jobs/.env", "tests/test_run.py"):
        (tmp_path / name).write_text("")
    git = ["git", "-c", "init.defaultBranch=main"]
    subprocess.run([*git, "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run([*git, "add", "jobs/run.py", "tests/test_run.py"], cwd=tmp_path, check=True)
    path = package(tmp_path, tmp_path / "dist")
    assert zipfile.ZipFile(path).namelist() == ["jobs/run.py"]
