"""Start a local Ray, submit a job to it with `ray job submit` as one would on a cluster, follow it, stop that Ray.

usage: python -m cluster.local.submit [--job run_pipeline] --config demo [--set key=value ...] [--limit N] [--small]

It ends with the job's exit code (`aqe.errors`); `ray job submit` itself ends with 1 whenever a job fails.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cluster.local.ray_head import Head, ray_head

if TYPE_CHECKING:
    from aqe.config.command_line import CommandLine
    from aqe.observe.screen import Screen

ROOT = Path(__file__).parents[2]

NEEDS = {
    "demo": "some 6 minutes on 2 cores, 8 GB of memory, 2 GB of disk below runs/",
    "quickstart": "some 90 minutes on 2 cores, 10 GB of memory, 3 GB of disk below runs/; interrupted, it resumes",
    "results_quickstart": "some 2.7 hours on 2 cores, 10 GB of memory, 10 GB of disk; interrupted, it resumes",
    "wiki": "some 2.5 hours on 2 cores (estimated), 12 GB of memory, 12 GB of disk; interrupted, it resumes",
    "wiki_small": "about 60 minutes on 2 cores, 10 GB of memory, 4 GB of disk below runs/; interrupted, it resumes",
}

RETRY_SECONDS = 1.0


def main() -> int:
    """Exit code of the job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
    parser.add_argument("--job", default="run_pipeline", help=", ".join(jobs))
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--debug", action="store_true")
    args = parser.parse_args()
    # Looked at here too, so that a mistake is said before a cluster starts.
    from aqe.advice import advice
    from aqe.cli import checked
    from aqe.config.base import nearest
    from aqe.config.command_line import CommandLine
    from aqe.config.pipeline import is_file
    from aqe.cost import cost
    from aqe.errors import ConfigError
    from aqe.exits import quietly
    from aqe.smollm2 import PARAMETERS

    # Ended from outside, or its terminal closed, it ends its Ray too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which nohup has set
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    with quietly(args.debug):
        if args.job not in jobs:
            raise ConfigError(
                f"--job {args.job}: there is no such job.{nearest(args.job, jobs)} There are {', '.join(jobs)}."
            )
        asked = CommandLine(args.config, tuple(args.set), None, args.limit, args.small)
        config, model = checked(asked)
        if args.job == "run_pipeline":
            plan = cost(config, PARAMETERS if model is None else model.parameters)
            for line in advice(asked, plan, [sys.executable, "-m", "cluster.local.submit"]):
                print(line, flush=True)
        # The job's working directory is a copy of this project: what is here is named by its whole path.
        named = str(Path(asked.config).absolute()) if is_file(asked.config) else asked.config
        code = _run(args.job, replace(asked, config=named, base_dir=asked.directory), args.debug, config.run_dir)
    if code == 0:
        print(f"In this checkout, the command `aqe` is {Path(sys.executable).parent / 'aqe'}", flush=True)
    print(f"The local Ray is stopped. Artifacts: {config.run_dir}", flush=True)
    return code


def _run(job: str, asked: "CommandLine", debug: bool, run_dir: Path) -> int:
    """Exit code of the job, on a Ray that lives as long as it."""
    from aqe.observe.lines import FOLLOWED
    from aqe.observe.screen import Screen, log_file

    options = asked.options + ["--debug"] * debug
    with Screen(log_file(run_dir)) as screen:
        if asked.config in NEEDS and not asked.small:
            free = shutil.disk_usage(Path.cwd()).free / 1e9
            screen.show(f"{asked.config}: {NEEDS[asked.config]} ({free:.0f} GB free here)")
        screen.show("Starting a Ray on this machine ...")
        started = time.monotonic()
        with ray_head() as head:
            screen.show(
                f"Ray is up after {time.monotonic() - started:.0f} s, dashboard {head.address} "
                f"(token in {head.env['RAY_AUTH_TOKEN_PATH']})."
            )
            screen.show(
                f"$ ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/{job}.py "
                + shlex.join(options),
                "dim",
            )
            submit(head, job, options, "aqe", {FOLLOWED: screen.mode})
            return follow(job_client(head), "aqe", screen)


def submit(head: Head, job: str, options: Sequence[str], name: str, more_env: Mapping[str, str] | None = None) -> None:
    """`ray job submit` this checkout's jobs/`job`.py under the submission id `name`; returns when it is accepted.

    `more_env` is set for the job and its workers. Raises SystemExit with what the command said where it is not.
    """
    runtime_env = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
    runtime_env["env_vars"] |= more_env or {}
    command = [
        *(str(Path(sys.executable).parent / "ray"), "job", "submit", "--no-wait", "--submission-id", name),
        *("--working-dir", str(ROOT), "--runtime-env-json", json.dumps(runtime_env)),
        *("--", sys.executable, f"jobs/{job}.py", *options),
    ]
    done = subprocess.run(command, cwd=ROOT, env=head.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(done.stdout)


def job_client(head: Head) -> Any:
    """A ray.job_submission.JobSubmissionClient that shows the head's token."""
    from ray.job_submission import JobSubmissionClient

    # Each of them sets a level of its own.
    for module in ("job.sdk", "dashboard_sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    return JobSubmissionClient(head.address, headers=head.headers)


def follow(client: Any, job: str, screen: "Screen") -> int:
    """Show what the job says until it has ended; 0 when it succeeded.

    `ray job submit` gives up when its stream of the log breaks, which it does at times while the dashboard is busy; the
    job goes on all the same. Here the stream is taken up again.
    """
    import aiohttp

    log = _Log(screen.take)
    while True:
        with contextlib.suppress(RuntimeError, aiohttp.ClientError):
            asyncio.run(log.show(client, job))
        status = client.get_job_status(job)
        if status.is_terminal():
            log.end()
            if status == "SUCCEEDED":
                return 0
            info = client.get_job_info(job)
            # What aqe ended with, it has said itself.
            if not screen.ended:
                screen.broken_off()
                print(f"The job ended as {status}: {info.message}", file=sys.stderr, flush=True)
            return info.driver_exit_code or 1
        time.sleep(RETRY_SECONDS)


class _Log:
    """What a job has said; each line is taken once, though every stream begins with the first."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self.take = take
        self.seen = 0
        """Characters that have arrived."""
        self.rest = ""
        """A line whose end has not."""

    def end(self) -> None:
        """There comes no more: what a job that died had begun to say is a line too."""
        if self.rest:
            self.take(self.rest)
            self.rest = ""

    async def show(self, client: Any, job: str) -> None:
        at = 0
        async for text in client.tail_job_logs(job):
            new = text[max(0, self.seen - at) :]
            at += len(text)
            self.seen = max(self.seen, at)
            *lines, self.rest = (self.rest + new).split("\n")
            for line in lines:
                self.take(line)


if __name__ == "__main__":
    raise SystemExit(main())
