"""Start a local Ray, submit a job to it with `ray job submit` as one would on a cluster, follow it, stop that Ray.

usage: python -m cluster.local.submit [--job run_pipeline] --config demo [--set key=value ...]
"""

import argparse
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from cluster.local.ray_head import ray_head

ROOT = Path(__file__).parents[2]

NEEDS = {
    "demo": "about 12 minutes on 2 cores, 8 GB of memory, 2 GB of disk below runs/",
    "quickstart": "about 90 minutes on 2 cores, 10 GB of memory, 3 GB of disk below runs/; interrupted, it resumes",
    "wiki_small": "about 60 minutes on 2 cores, 10 GB of memory, 4 GB of disk below runs/; interrupted, it resumes",
}

#: What Ray puts before a line that a task on this machine printed.
PREFIX = re.compile(r"^(\x1b\[\d+m)?\([^ ]+ pid=\d+\)(\x1b\[\d+m)? ")

#: What Ray says around a job's own lines.
NOISE = (
    *(
        "WARNING working_dir.py",
        "INFO packaging.py",
        "INFO cli.py",
        "SUCC cli.py",
        "INFO sdk.py",
        "INFO job_manager.py",
        "INFO dashboard_sdk.py",
    ),
    *("logging.cc:", "core_worker.cc", "Running entrypoint for job", "PlacementGroupCleaner", "Tailing logs until"),
    *("Loading safetensors checkpoint shards", "NUMA binding"),
    *("Gradient accumulation steps mismatch", "Reporting training result", "issue_detector_manager"),
)


def main() -> int:
    """Exit code of the job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", default="run_pipeline")
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    # The job's working directory is a copy of this project: a file of the user's is named by its whole path.
    named = str(Path(args.config).absolute()) if args.config.endswith((".yaml", ".yml")) else args.config
    options = ["--config", named, "--base-dir", str(Path.cwd())]
    for assignment in args.set:
        options += ["--set", assignment]
    # The configuration is read here too, so that a mistake costs a second and not a cluster's start.
    from aqe.config.pipeline import load_config
    from aqe.errors import AqeError

    try:
        config = load_config(args.config, args.set, Path.cwd())
    except AqeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if args.config in NEEDS:
        free = shutil.disk_usage(Path.cwd()).free / 1e9
        print(f"{args.config}: {NEEDS[args.config]} ({free:.0f} GB free here)", flush=True)
    print("Starting a Ray on this machine ...", flush=True)
    # Ended from outside, or its terminal closed, it ends its Ray too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which nohup has set
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    started = time.monotonic()
    with ray_head() as head:
        print(
            f"Ray is up after {time.monotonic() - started:.0f} s, dashboard {head.address} "
            f"(token in {head.env['RAY_AUTH_TOKEN_PATH']}).\n"
            f"$ ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/{args.job}.py "
            + shlex.join(options),
            flush=True,
        )
        command = [
            *(str(Path(sys.executable).parent / "ray"), "job", "submit", "--working-dir", str(ROOT)),
            *("--runtime-env", str(ROOT / "jobs" / "runtime_env.yaml")),
            *("--", sys.executable, f"jobs/{args.job}.py", *options),
        ]
        code = _follow(command, head.env)
    print(f"The local Ray is stopped. Artifacts: {config.run_dir}", flush=True)
    return code


def _follow(command: list[str], env: dict[str, str]) -> int:
    """Show what the job says, without what the submission tool says around it."""
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            shown = PREFIX.sub("", line)
            # What a progress bar leaves is a prefix and nothing after it.
            if not _is_noise(line) and (shown.strip() or shown == line):
                print(shown, end="", flush=True)
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        print("\nInterrupted. The same command resumes.", flush=True)
        return 130


def _is_noise(line: str) -> bool:
    return any(text in line for text in NOISE)


if __name__ == "__main__":
    raise SystemExit(main())
