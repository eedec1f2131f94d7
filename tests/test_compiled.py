"""Compiled loops are kept by what the code says: a copy elsewhere finds them, changed code does not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import PLATFORM

CALL = """
import numpy as np
from aqe.impacts.lookup import lower_bound
assert lower_bound(np.arange(10, dtype=np.uint32), 0, 10, 7) == 7
hits = sum(lower_bound.stats.cache_hits.values())
print("found" if hits else "compiled")
"""


def called(copy: Path, cache: Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(copy), "AQE_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", CALL], env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_copy_of_the_code_finds_what_another_compiled(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    copies = [tmp_path / name for name in ("job 1", "job 2", "changed")]
    for copy in copies:
        # Without times: each file of a copy is as old as the copy.
        shutil.copytree(PLATFORM, copy, copy_function=shutil.copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert [called(copy, cache) for copy in copies] == ["compiled", "found", "found"]
    files = len(list(cache.rglob("*.nbc")))
    # Another file than the one that is called: its constants may come from there.
    shard = copies[2] / "aqe" / "index" / "shard.py"
    shard.write_text(shard.read_text() + "\n# changed\n")
    assert [called(copy, cache) for copy in (copies[2], copies[2], copies[0])] == ["compiled", "found", "found"]
    assert len(list(cache.rglob("*.nbc"))) == 2 * files
