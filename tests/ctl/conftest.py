"""A stand-in for the daemon: a real HTTP server on a real Unix socket, in a thread, answering as told."""

from __future__ import annotations

import json
import os
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result

ROOT = Path(__file__).resolve().parents[2]

# Nothing here takes long; what does, hangs.
PATIENCE_SECONDS = 45.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the stand-in was asked: ``path`` is relative to the base, ``query`` is what follows its '?'."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Any


class Reply(BaseHTTPRequestHandler):
    """One request, and the ways to answer it."""

    protocol_version = "HTTP/1.1"
    server: Daemon

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        self.request_seen = Request(
            method=self.command,
            path=url.path.removeprefix("/control/v1/"),
            query=url.query,
            headers=dict(self.headers.items()),
            body=json.loads(body) if body else None,
        )
        self.server.requests.append(self.request_seen)
        route = self.server.routes.get((self.command, self.request_seen.path), self.server.otherwise)
        if route is None:
            self.problem(404, "not_found", f"no route {self.path}")
        else:
            route(self)

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_DELETE(self) -> None:
        self.answer()

    def document(self, body: object, status: int = 200, content_type: str = "application/json") -> None:
        """Answers with a whole JSON document."""
        encoded = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def problem(self, status: int, code: str, detail: str, **more: object) -> None:
        """Answers with application/problem+json."""
        body = {
            "type": "about:blank",
            "title": code,
            "status": status,
            "detail": detail,
            "code": code,
            **more,
        }
        self.document(body, status, "application/problem+json")

    def begin_stream(self) -> None:
        """Sends the head of a chunked NDJSON stream."""
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def line(self, document: object) -> None:
        """Sends one line of it as a chunk of its own."""
        self.chunk(json.dumps(document).encode() + b"\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def lines(self, *documents: object) -> None:
        """Answers with a whole stream."""
        self.begin_stream()
        for document in documents:
            self.line(document)
        self.end_stream()

    def wait_for_hangup(self) -> bool:
        """Whether the client closes its end while nothing is sent."""
        self.connection.settimeout(PATIENCE_SECONDS)
        return self.rfile.read(1) == b""

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class Daemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers by ``routes``: (method, path below the base) to what makes the reply; the rest by ``otherwise``, where
    there is such an answer. Keeps every request. Who connects before :meth:`begin` waits for it."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, path: Path) -> None:
        self.path = path
        self.routes: dict[tuple[str, str], Callable[[Reply], None]] = {}
        self.otherwise: Callable[[Reply], None] | None = None
        self.requests: list[Request] = []
        super().__init__(str(path), Reply)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def begin(self) -> None:
        """Answers from now on."""
        self._thread.start()

    def on(self, method: str, path: str, reply: Callable[[Reply], None]) -> None:
        self.routes[method, path] = reply

    def says(self, method: str, path: str, document: object, status: int = 200) -> None:
        self.on(method, path, lambda reply: reply.document(document, status))

    def refuses(self, method: str, path: str, status: int, code: str, detail: str, **more: object) -> None:
        self.on(method, path, lambda reply: reply.problem(status, code, detail, **more))

    def tells(self, method: str, path: str, *documents: object) -> None:
        self.on(method, path, lambda reply: reply.lines(*documents))

    @property
    def last(self) -> Request:
        return self.requests[-1]

    def leave(self) -> None:
        """Stops listening and removes the socket, as the daemon does last."""
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self.shutdown()
            self._thread.join(PATIENCE_SECONDS)
        self.server_close()
        self.path.unlink(missing_ok=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what many tests are about."""


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose paths fit into a socket address, which those of tmp_path may not."""
    with tempfile.TemporaryDirectory(prefix="ctl-") as directory:
        yield Path(directory)


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    running = Daemon(short_dir / "ctl.sock")
    running.begin()
    yield running
    running.leave()


Invoke = Callable[..., Result]


@pytest.fixture
def invoke(daemon: Daemon) -> Invoke:
    """Runs claudectl in this process against the stand-in: ``invoke("health", "--json", input=...)``."""
    from claudectl.main import cli

    def run(*args: str, input: str | bytes | None = None) -> Result:
        return CliRunner().invoke(cli, ["--socket", str(daemon.path), *args], input=input, prog_name="claudectl")

    return run


@pytest.fixture
def environ(short_dir: Path) -> dict[str, str]:
    """The environment of a user on whose machine nothing is set, with the means to run this checkout."""
    # pytest's own processes have a size of a terminal that is nobody's
    others = ("CLAUDE_", "XDG_", "COLUMNS", "LINES")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    home = short_dir / "home"
    home.mkdir()
    return ours | {"HOME": str(home), "PYTHONPATH": f"{ROOT}:{ROOT / 'ctl'}", "NO_COLOR": "", "TERM": "xterm"}


class Process:
    """A process that does nothing until it is ended."""

    def __init__(self) -> None:
        self._running = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        self.pid = self._running.pid

    def end(self) -> None:
        """Returns when its number is nobody's any more."""
        self._running.kill()
        self._running.communicate()


@pytest.fixture
def process() -> Iterator[Process]:
    """What a daemon's pid may stand for."""
    running = Process()
    yield running
    running.end()


Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def spawn(environ: dict[str, str]) -> Iterator[Spawn]:
    """Starts claudectl as a real process; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: str, env: Mapping[str, str] | None = None, **streams: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "claudectl", *args],
            env={**environ, **(env or {})},
            stdin=streams.get("stdin", subprocess.DEVNULL),
            stdout=streams.get("stdout", subprocess.PIPE),
            stderr=streams.get("stderr", subprocess.PIPE),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process of claudectl ended."""

    code: int
    out: str
    err: str


Ctl = Callable[..., Ended]


@pytest.fixture
def ctl(spawn: Spawn) -> Ctl:
    """Runs claudectl as a real process to its end."""

    def run(*args: str, input: bytes | None = None, env: Mapping[str, str] | None = None) -> Ended:
        stdin = {} if input is None else {"stdin": subprocess.PIPE}
        process = spawn(*args, env=env, **stdin)
        out, err = process.communicate(input, timeout=PATIENCE_SECONDS)
        return Ended(process.returncode, out.decode(), err.decode())

    return run
