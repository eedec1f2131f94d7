"""What the end of a run prints, printed again; the page on this machine."""

import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from aqe.artifact import Artifact
from aqe.errors import InputError
from aqe.report.closing import closing, find
from aqe.report.serving import server
from aqe.run import Run
from tests.test_cli import aqe, refused
from tests.tools.small_project import ROOT


def make_report(root: Path, number: int = 0, metrics: Mapping[str, Any] | None = None) -> Artifact:
    def build(out: Path) -> Mapping[str, Any]:
        (out / "summary.txt").write_text(f"the table of {number}\n")
        (out / "metrics.json").write_text(json.dumps(metrics or {"systems": {}}))
        (out / "next_steps.txt").write_text("do this\ndo that\n")
        (out / "report.html").write_text(f"<p>page {number}")
        (out / "report.md").write_text("page")
        return {}

    made = Run(root, lambda line: None).make("report", config={"number": number}, inputs={}, build=build)
    (root / "report").unlink(missing_ok=True)
    (root / "report").symlink_to(made.path.name)
    return made


def test_the_end_of_a_run_is_printed_again(tmp_path: Path) -> None:
    make_report(tmp_path)
    newest = make_report(tmp_path, 1)
    done = aqe("report", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == closing(tmp_path, newest).strip()
    assert "the table of 1" in done.stdout and "the table of 0" not in done.stdout
    assert "No aligned model was measured" in done.stdout
    assert f"Report: {tmp_path / 'report' / 'report.html'}" in done.stdout
    assert "Next:\n  * do this\n  * do that" in done.stdout
    # What the run itself knows comes before what its report noted.
    assert "* another" in closing(tmp_path, newest, ["another"]) and "* do" not in closing(
        tmp_path, newest, ["another"]
    )


def test_a_run_without_a_report_says_how_to_get_one(tmp_path: Path) -> None:
    Run(tmp_path / "run", lambda line: None).make("corpus", config={}, inputs={}, build=lambda out: {})
    refused(aqe("report", str(tmp_path / "run")), "has no report yet")
    refused(aqe("report", str(tmp_path / "nothing")), "does not exist")


def test_a_report_that_was_changed_is_not_shown(tmp_path: Path) -> None:
    made = make_report(tmp_path)
    (made.path / "summary.txt").write_text("a table that nobody measured")
    refused(aqe("report", str(tmp_path)), "summary.txt", 4)


def test_the_page_is_served_with_what_lies_beside_it_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("no")
    made = make_report(tmp_path)
    with server(find(tmp_path).path, 0) as pages:
        thread = threading.Thread(target=pages.serve_forever)
        thread.start()
        try:
            assert pages.server_address[0] == "127.0.0.1"
            assert get(pages.server_port, "/") == (200, "<p>page 0")
            assert get(pages.server_port, "/summary.txt") == (200, "the table of 0\n")
            assert get(pages.server_port, "/../secret")[0] == 404
            with pytest.raises(InputError, match=f"--port {pages.server_port}"):
                server(made.path, pages.server_port)
        finally:
            pages.shutdown()
            thread.join()


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_serving_ends_with_an_interrupt(tmp_path: Path) -> None:
    make_report(tmp_path)
    command = [sys.executable, "-m", "aqe", "report", str(tmp_path), "--serve", "--port", "0"]
    env = {"PYTHONPATH": str(ROOT / "platform"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        address = next(line for line in serving.stdout if line.startswith("http://127.0.0.1:"))
        assert get(int(address.split(":")[2].partition("/")[0]), "/")[0] == 200
        serving.send_signal(signal.SIGINT)
        assert serving.wait(20) == 0
