"""Where the demo's time goes: seconds by stage at two commits, one after the other on the same machine.

usage: python benchmarks/demo.py [--before ed1eb81] [--after HEAD] [--out docs/results/demo_seconds.json]

Checks each commit out below runs/bench_demo, runs its `make demo` there and reads what it says. `all` is from the
command to its end, without the set-up of packages, which both share. What was run stays, with its log: the command
goes on where it was interrupted, and times nothing twice.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from generation import cpu_name  # noqa: E402

BENCH = ROOT / "runs" / "bench_demo"
#: "align_rsft: made in 01:08, 0.0378 CPU hours"
MADE = re.compile(r"^(?P<stage>[^:\n]+): made in (?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+)", re.MULTILINE)


def git(*command: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *command], check=True, capture_output=True, text=True).stdout.strip()


def demo(commit: str) -> Path:
    """Log of the demo at a commit; its last line says how long it took."""
    log, tree = BENCH / f"{commit}.log", BENCH / commit
    if log.exists():
        return log
    if not tree.exists():
        git("worktree", "add", "--detach", "--force", str(tree), commit)
        (tree / ".venv").symlink_to(ROOT / ".venv")
    print(f"the demo of {commit}, ...", flush=True)
    command = [str(ROOT / ".venv/bin/python"), "-m", "cluster.local.submit", "--config", "demo"]
    env = {**os.environ, "PYTHONPATH": f"{tree}:{tree / 'platform'}"}
    half = log.with_suffix(".part")
    began = time.monotonic()
    with half.open("w") as out:
        subprocess.run(command, cwd=tree, env=env, stdout=out, stderr=subprocess.STDOUT, check=True)
        out.write(f"seconds in all: {time.monotonic() - began:.0f}\n")
    return half.rename(log)


def read(log: str) -> dict[str, Any]:
    """Seconds by stage, in the order of the log; what one name was given to twice is added up."""
    stages: dict[str, int] = {}
    for made in MADE.finditer(log):
        spent = (int(made["hours"] or 0) * 60 + int(made["minutes"])) * 60 + int(made["seconds"])
        stages[made["stage"]] = stages.get(made["stage"], 0) + spent
    (whole,) = re.findall(r"^seconds in all: (\d+)$", log, re.MULTILINE)
    return {"all": int(whole), "stages": stages, "outside_stages": int(whole) - sum(stages.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="ed1eb81", help="a commit (default: the last one before ADR 15)")
    parser.add_argument("--after", default="HEAD")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "demo_seconds.json")
    args = parser.parse_args()
    BENCH.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"benchmark": "demo"}
    for name in ("before", "after"):
        commit = git("rev-parse", "--short=7", getattr(args, name))
        result[name] = {"commit": commit, **read(demo(commit).read_text())}
    result["ratio"] = round(result["before"]["all"] / result["after"]["all"], 2)
    result["machine"] = {"cpu": cpu_name(), "cores": os.cpu_count()}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: result[name]["all"] for name in ("before", "after")}))


if __name__ == "__main__":
    main()
