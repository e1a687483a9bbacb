"""A real server of `hf-accum serve`, in a process of its own, and its clients."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launching import ROOT

JSON = {"Content-Type": "application/json"}


@dataclass
class Server:
    """What listens at a port; `log` is all that it said, once it has ended."""

    process: subprocess.Popen[str]
    port: int
    log: str = field(default="", repr=False)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def send(self, body: Any, headers: dict[str, str] = JSON, method: str = "POST", path: str = "/predict") -> Any:
        """The status of an answer, and what it says."""
        connection = self.connect()
        try:
            connection.request(method, path, body, headers)
            return answer_of(connection)
        finally:
            connection.close()

    def ask(self, value: Any) -> Any:
        return self.send(json.dumps(value).encode())

    def get(self, path: str) -> Any:
        return self.send(None, {}, "GET", path)

    def metric(self, name: str) -> float:
        text = self.get("/metrics")[1]
        return float(next(line.split()[1] for line in text.splitlines() if line.split()[0] == f"hf_accum_{name}"))


def answer_of(connection: http.client.HTTPConnection) -> tuple[int, Any]:
    response = connection.getresponse()
    text = response.read().decode()
    is_json = response.headers.get_content_type() == "application/json"
    return response.status, json.loads(text) if is_json else text


@contextmanager
def served(run: Path, *flags: str) -> Iterator[Server]:
    """A server, which is ended by SIGTERM where it was not, and has to end well."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_accum.cli.main", "serve", str(run), "--port=0", *flags],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    last_moment = threading.Timer(240, process.kill)
    last_moment.start()
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if line.startswith("serving on "):
                break
        else:
            raise AssertionError("".join(said))
        server = Server(process, urlsplit(said[-1].split()[2].rstrip(";")).port or 0)
        yield server
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        server.log = "".join(said) + process.stdout.read()
        assert process.wait(timeout=60) == 0, server.log
        assert server.log.endswith("ended\n")
    finally:
        last_moment.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
