"""A job is followed to its end, whatever becomes of the stream of its log."""

from collections.abc import AsyncIterator

import pytest
from ray.dashboard.modules.job.common import JobStatus
from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType

from cluster.local import submit


class _BreakingClient:
    """A job client whose log stream breaks, in the middle of a line too, and begins anew each time."""

    LOG = "(task pid=7) one\n\ntwo\nlogging.cc: noise\nthree\n"

    def __init__(self, ends: str, exit_code: int | None) -> None:
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
    ends: str, exited: int | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "RETRY_SECONDS", 0)
    assert submit.follow(_BreakingClient(ends, exited), "aqe") == code
    said = capsys.readouterr()
    assert said.out == "one\n\ntwo\nthree\n"
    # Its own errors the job has said itself.
    assert (said.err == "") == (code in (0, 3))
