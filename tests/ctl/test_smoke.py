"""``claudectl test``, against a daemon that answers wrongly; e2e/test_claudectl.py asks a real one."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from claudectl import smoke
from claudectl.commands.test import NAMES
from tests.ctl.conftest import Daemon, Invoke

KEY = "cd_test"


def test_the_names_are_those_of_the_questions() -> None:
    assert tuple(smoke.QUESTIONS) == NAMES


# one that answers wrongly


class Public(ThreadingHTTPServer):
    """A public port that answers as told: path → (status, content type, body)."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str, str]] = {}
        self.keys: list[str | None] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def says(self, path: str, body: object, status: int = 200) -> None:
        self.answers[path] = (status, "application/json", json.dumps(body))

    def streams(self, path: str, *events: object) -> None:
        self.answers[path] = (200, "text/event-stream", "".join(f"data: {json.dumps(event)}\n\n" for event in events))


class _Handler(BaseHTTPRequestHandler):
    server: Public

    def do_GET(self) -> None:
        self.server.keys.append(self.headers.get("Authorization"))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, kind, body = self.server.answers.get(self.path, (404, "application/json", "{}"))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Claude-Daemon-Lane", "text")
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def public(daemon: Daemon, short_dir: Path) -> Iterator[Public]:
    """The stand-in behind the control socket tells where it is, and which key opens it."""
    server = Public()
    (short_dir / "local.key").write_text(f"{KEY}\n")
    tells(daemon, url=server.url, key_file=str(short_dir / "local.key"))
    yield server
    server.shutdown()
    server.server_close()


def tells(daemon: Daemon, **status: object) -> None:
    daemon.says("GET", "status", {"lanes": ["direct", "text"], **status})
    daemon.says("GET", "config", {"values": [{"key": "engine.default_model", "value": "haiku"}]})


Asked = Callable[..., dict[str, Any]]


@pytest.fixture
def asked(invoke: Invoke, public: Public) -> Asked:
    """The one result of one question."""

    def ask(name: str, *args: str) -> dict[str, Any]:
        result = invoke("test", name, "--json", *args)
        document = json.loads(result.stdout)
        (told,) = document["tests"]
        assert (result.exit_code, document["ok"]) == ((1, False) if told["status"] == "failed" else (0, True))
        return {"status": told["status"], "detail": told["detail"]}

    return ask


def failed(detail: str) -> dict[str, Any]:
    return {"status": "failed", "detail": detail}


DELTA = {"choices": [{"delta": {"content": "rea\x1b[2Jdy"}, "finish_reason": None}]}
END = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


def test_a_probe_is_asked_without_a_key_and_a_chat_with_it(public: Public, asked: Asked) -> None:
    public.says("/live", {"state": "ready"})
    public.says("/v1/messages", {"content": [{"type": "text", "text": "ready"}]})
    assert asked("live") == {"status": "ok", "detail": "ready"}
    assert asked("text") == {"status": "ok", "detail": "ready"}
    assert public.keys == [None, f"Bearer {KEY}"]


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (
            {"status": "fail", "state": "draining", "reason": "the daemon is draining"},
            503,
            "HTTP 503: the daemon is draining",
        ),
        ({}, 503, "HTTP 503"),
        ([], 200, "the answer names no state"),
    ],
)
def test_a_probe_that_says_no_tells_why(public: Public, asked: Asked, body: object, status: int, detail: str) -> None:
    public.says("/ready", body, status)
    assert asked("ready") == failed(detail)


@pytest.mark.parametrize(
    ("name", "body", "status", "detail"),
    [
        ("direct", {"content": [{"text": "hi"}]}, 200, "the direct lane was asked for, and text has answered"),
        ("text", {"content": []}, 200, "the answer is empty"),
        ("text", {"content": [{"text": " \n"}]}, 200, "the answer is empty"),
        ("text", {"error": {"message": "bad\x1b[2J\nkey"}}, 401, "HTTP 401: bad key"),
        ("text", {"detail": "no such thing"}, 404, "HTTP 404: no such thing"),
    ],
)
def test_a_chat_that_is_no_answer_fails(
    public: Public, asked: Asked, name: str, body: object, status: int, detail: str
) -> None:
    public.says("/v1/messages", body, status)
    assert asked(name) == failed(detail)


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        ([DELTA, END], {"status": "ok", "detail": "ready"}),
        ([DELTA], failed("the stream broke off before its end")),
        ([END], failed("the answer is empty")),
        ([DELTA, {"error": {"message": "overloaded"}}], failed("overloaded")),
        ([], failed("the stream broke off before its end")),
    ],
)
def test_a_stream_must_come_to_its_end(public: Public, asked: Asked, chunks: list[Any], told: dict[str, Any]) -> None:
    public.streams("/v1/chat/completions", *chunks)
    assert asked("stream") == told


TEXT = {"type": "text.delta", "data": {"text": "ready"}}


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([TEXT, {"type": "task.succeeded", "data": {}}], {"status": "ok", "detail": "ready"}),
        ([TEXT, {"type": "text.reset", "data": {}}, {"type": "task.succeeded"}], failed("the answer is empty")),
        (
            [{"type": "task.failed", "data": {"error": {"code": "deadline", "message": "late"}}}],
            failed("deadline: late"),
        ),
        ([TEXT], failed("the events broke off before the task's end")),
    ],
)
def test_a_task_must_succeed(public: Public, asked: Asked, events: list[Any], told: dict[str, Any]) -> None:
    public.says("/v1/tasks", {"id": "task_1"}, 202)
    public.streams("/v1/tasks/task_1/events", *events)
    assert asked("task") == told


@pytest.fixture
def talk(daemon: Daemon, short_dir: Path) -> Iterator[Callable[[Callable[[ServerConnection], None]], None]]:
    """Serves a WebSocket as told."""
    servers: list[Server] = []
    (short_dir / "local.key").write_text(KEY)

    def begin(handler: Callable[[ServerConnection], None]) -> None:
        server = serve(handler, "127.0.0.1", 0, subprotocols=["claude-daemon.v1"])  # type: ignore[list-item]
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        tells(daemon, url=f"http://127.0.0.1:{port}", key_file=str(short_dir / "local.key"))

    yield begin
    for server in servers:
        server.shutdown()


def _says(*messages: object) -> Callable[[ServerConnection], None]:
    def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        assert connection.request.headers["Authorization"] == f"Bearer {KEY}"
        submitted = json.loads(connection.recv())
        assert (submitted["op"], submitted["task"]["model"]) == ("submit", "haiku")
        try:
            for message in messages:
                connection.send(json.dumps(message))
        except ConnectionClosed:
            pass

    return handler


@pytest.mark.parametrize(
    ("messages", "status", "detail"),
    [
        ([{"op": "ack"}, TEXT, {"type": "task.succeeded"}], "ok", "ready"),
        ([{"op": "error", "error": {"code": "forbidden", "message": "no"}}], "failed", "forbidden: no"),
        ([{"op": "ack"}], "failed", "received 1000 (OK); then sent 1000 (OK)"),
    ],
)
def test_a_websocket_must_tell_the_end(
    daemon: Daemon,
    invoke: Invoke,
    talk: Callable[[Callable[[ServerConnection], None]], None],
    messages: list[Any],
    status: str,
    detail: str,
) -> None:
    talk(_says(*messages))
    (told,) = json.loads(invoke("test", "websocket", "--json").stdout)["tests"]
    assert (told["status"], told["detail"]) == (status, detail)


def test_a_lane_that_does_not_serve_is_skipped_and_fails_nothing(asked: Asked) -> None:
    assert asked("agent") == {"status": "skipped", "detail": "the agent lane does not serve here"}


def test_an_agent_is_asked_over_the_control_socket_and_its_session_is_deleted(
    daemon: Daemon, asked: Asked, public: Public
) -> None:
    tells(daemon, url=public.url, lanes=["agent", "session"])
    queued = {"task": "task_1", "type": "task.queued"}
    daemon.tells("POST", "tasks", queued, TEXT, {"type": "task.succeeded", "data": {}})
    daemon.says("GET", "tasks/task_1", {"session_id": "sess_1"})
    daemon.says("DELETE", "sessions/sess_1", {})
    assert asked("session") == {"status": "ok", "detail": "ready"}
    submitted = next(request.body for request in daemon.requests if request.method == "POST")
    assert (submitted["session"], submitted["model"]) == ({}, "haiku")
    assert daemon.last.method == "DELETE"


def test_what_the_control_socket_refuses_is_that_questions_failure(
    daemon: Daemon, asked: Asked, public: Public
) -> None:
    tells(daemon, url=public.url, lanes=["agent"])
    daemon.refuses("POST", "tasks", 403, "sandbox_unavailable", "there is no sandbox")
    assert asked("agent") == failed("sandbox_unavailable: there is no sandbox")


def test_a_port_that_nobody_serves_fails_each_question(daemon: Daemon, invoke: Invoke, public: Public) -> None:
    public.shutdown()
    public.server_close()
    result = invoke("test", "live", "ready")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0].split() == ["TEST", "RESULT", "TIME", "FIRST"]
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:]] == [["live", "failed"], ["ready", "failed"]]
    assert result.stdout.count("Connection refused") == 2


def test_a_server_that_is_silent_is_given_up(daemon: Daemon, invoke: Invoke, short_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tells(daemon, url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        result = invoke("test", "live", "--timeout", "0.3")
    assert (result.exit_code, result.stderr) == (124, "error: timed out after 0.3 s\n")


@pytest.mark.parametrize("content", [None, "", "ключ", "two\nlines"])
def test_without_a_key_that_can_be_read_it_is_denied_before_anything_is_asked(
    daemon: Daemon, invoke: Invoke, public: Public, short_dir: Path, content: str | None
) -> None:
    file = short_dir / "other.key"
    if content is not None:
        file.write_text(content)
    result = invoke("test", "--key-file", str(file))
    assert result.exit_code == 5
    assert result.stderr.startswith(f"error: {file}: ")
    assert public.keys == []
    public.says("/live", {"state": "ready"})
    assert invoke("test", "live", "--key-file", str(file)).exit_code == 0  # which needs none
