"""A job is followed to its end, whatever becomes of the stream of its log."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ray.dashboard.modules.job.common import JobStatus
from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType
from rich.console import Console

from aqe.observe.lines import Ended, encoded
from aqe.observe.screen import Screen
from cluster.local import submit


class _BreakingClient:
    """A job client whose log stream breaks, in the middle of a line too, and begins anew each time."""

    LOG = f"(task pid=7) {encoded('one')}\n\n{encoded('two')}\nlogging.cc: noise\n{encoded('three')}\n"

    def __init__(self, ends: str, exit_code: int | None) -> None:
        if exit_code == 3:
            self.LOG += encoded(Ended("DataError: it holds no row")) + "\n"
        self.exit_code = exit_code
        self.streams = [5, 25, len(self.LOG)]
        self.ends = ends
        self.status = JobStatus.RUNNING

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        length = self.streams.pop(0)
        for start in range(0, length, 4):
            yield self.LOG[start : min(start + 4, length)]
        if self.streams:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        self.status = JobStatus(self.ends)

    def get_job_status(self, job: str) -> JobStatus:
        return self.status

    def get_job_info(self, job: str) -> JobDetails:
        return JobDetails(
            type=JobType.SUBMISSION, entrypoint="", status=self.status, message="why", driver_exit_code=self.exit_code
        )


@pytest.mark.parametrize(
    ("ends", "exited", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 1, 1), ("FAILED", 3, 3), ("FAILED", None, 1), ("STOPPED", None, 1)],
)
def test_a_broken_log_stream_is_taken_up_again(
    ends: str,
    exited: int | None,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(submit, "RETRY_SECONDS", 0)
    client, out, log = _BreakingClient(ends, exited), io.StringIO(), tmp_path / "run.log"
    with Screen(log, Console(file=out, width=200)) as screen:
        assert submit.follow(client, "aqe", screen) == code
    shown = out.getvalue().splitlines()[1:]
    assert log.read_text().splitlines()[:5] == ["one", "", "two", "logging.cc: noise", "three"]
    assert shown[:3] == ["one", "two", "three"]
    # Its own errors the job has said itself; of a fault, what others said last is shown.
    said_itself = ["DataError: it holds no row"] if exited == 3 else []
    fault = ["logging.cc: noise", f"All of it is in {log}"] if code == 1 else []
    assert shown[3:] == [*said_itself, *fault]
    assert (f"The job ended as {ends}: why" in capsys.readouterr().err) == (code == 1)


def test_a_line_that_a_dead_job_left_unfinished_is_shown() -> None:
    taken: list[str] = []
    log = submit._Log(taken.append)
    log.rest = "Fatal Python error"
    log.end()
    log.end()
    assert taken == ["Fatal Python error"]
