"""A report's page in a browser: a small server for this machine alone."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aqe.errors import InputError
from aqe.runs import PAGE

HOST = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    """The files of the report; its page at the root. Says nothing of each request."""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] == "/":
            self.path = f"/{PAGE}"
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        return


def server(report: Path, port: int) -> ThreadingHTTPServer:
    """Serves the files of a report's directory on 127.0.0.1 as soon as `serve_forever` is called; 0 takes a free port.

    InputError where the port is taken.
    """
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Handler, directory=str(report)))
    except OSError as error:
        raise InputError(f"--port {port}: {HOST} refuses it ({error.strerror}). Name another port.") from None
