"""HTTP over the control socket: documents, and streams of lines.

One request a connection: connecting to a Unix socket costs microseconds, and closing it ends the request,
never a task. Everything that goes wrong leaves as a :class:`~claudectl.errors.ControlError`.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

from claudectl.clean import clean_line
from claudectl.errors import Conflict, ControlError, Denied, Mismatch, NotFound, NotReady, NotRunning, TimedOut
from claudectl.sockets import BoundedSocket, Deadline, connect_first

BASE = "/control/v1/"
PROTOCOL = "1"
JSON = "application/json"
NDJSON = "application/x-ndjson"
PROBLEM = "application/problem+json"

# The daemon bounds its own health checks to a second each: an ordinary answer that takes longer hangs.
REQUEST_SECONDS = 10.0
# The longest document is a page of a hundred tasks, each with its answer: half a megabyte from the most talkative
# model, told twice where it was to be JSON.
MAX_DOCUMENT_BYTES = 128 * 1024 * 1024
# Event data is cut at 64 KiB, JSON escapes make at most six times of it, and the envelope is small.
MAX_LINE_BYTES = 1024 * 1024

Document = Mapping[str, Any]
# the HTTP status and the JSON object
Answer = tuple[int, Document]


class Client:
    """Speaks the control protocol with the first daemon that answers on ``paths``.

    ``timeout_seconds`` bounds everything this client does, from now on. Without it each document is bounded
    by :data:`REQUEST_SECONDS`, and streams are not bounded. ``note`` is told, once, when it was not the first
    of ``paths`` that answered.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        timeout_seconds: float | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self._paths = paths
        self._whole = None if timeout_seconds is None else Deadline(timeout_seconds)
        self._note = note

    def get(self, path: str, *, also: tuple[int, ...] = (), patience_seconds: float = REQUEST_SECONDS) -> Answer:
        """The document at ``path``. ``also`` are error statuses whose body may be a document too."""
        return self._document("GET", path, None, also, patience_seconds)

    def post(self, path: str, body: Document, *, patience_seconds: float = REQUEST_SECONDS) -> Document:
        """What ``path`` answers to ``body``."""
        return self._document("POST", path, body, (), patience_seconds)[1]

    def delete(self, path: str) -> Document:
        """What is said of the end of ``path``."""
        return self._document("DELETE", path, None, (), REQUEST_SECONDS)[1]

    @contextmanager
    def stream(self, path: str, body: Document | None = None) -> Iterator[Iterator[bytes]]:
        """Posts ``body``, or gets where there is none; yields the lines of the answer as they come, without line
        ends and never empty.

        Leaving the block closes the connection, whether the lines are at their end or not. The lines raise
        StreamCut when the daemon goes away in the middle of them.
        """
        deadline = self.deadline(None)
        method = "GET" if body is None else "POST"
        with self._request(method, path, body, NDJSON, deadline) as response:
            if response.status >= 400:
                raise _refusal(response.status, _read_document(response, deadline))
            yield _lines(response, deadline)

    def connect(self, deadline: Deadline) -> BoundedSocket:
        """A connection to the first path that answers, which the caller closes."""
        path, connected = connect_first(self._paths, deadline)
        if self._note is not None and path != self._paths[0]:
            self._note(f"{self._paths[0]} does not answer; using {path}")
        self._note = None
        # A daemon that restarts must not be mistaken for another one that still runs.
        self._paths = (path,)
        return connected

    def deadline(self, patience_seconds: float | None) -> Deadline:
        """That of the whole client where it has one, else one that begins now."""
        return self._whole or Deadline(patience_seconds)

    @property
    def path(self) -> str:
        """The socket that answered, or the first to be tried."""
        return self._paths[0]

    def _document(
        self, method: str, path: str, body: Document | None, also: tuple[int, ...], patience_seconds: float
    ) -> Answer:
        deadline = self.deadline(patience_seconds)
        with self._request(method, path, body, JSON, deadline) as response:
            document = _read_document(response, deadline)
            expected = response.status < 300 or (response.status in also and not _is_problem(response))
            if not expected:
                raise _refusal(response.status, document)
            if document is None:
                raise Mismatch("the daemon's answer is not a JSON object: is this the control socket?")
            return response.status, document

    @contextmanager
    def _request(
        self, method: str, path: str, body: Document | None, accept: str, deadline: Deadline
    ) -> Iterator[http.client.HTTPResponse]:
        connection = UnixConnection(self.connect(deadline))
        try:
            with _translated(deadline, begun=False):
                response = connection.exchange(method, BASE + path, body, accept)
            with response:
                yield response
        finally:
            connection.close()


def below(collection: str, name: str, verb: str = "") -> str:
    """
    >>> below("workers", "w_1", "kill"), below("connections", "a/../b")
    ('workers/w_1/kill', 'connections/a%2F..%2Fb')
    """
    return "/".join(part for part in (collection, quote(os.fsencode(name), safe=""), verb) if part)


class UnixConnection(http.client.HTTPConnection):
    """One request over a socket that is connected already."""

    def __init__(self, connected: BoundedSocket) -> None:
        super().__init__("localhost")
        self.sock = connected
        self.auto_open = 0

    def exchange(self, method: str, path: str, body: Document | None, accept: str) -> http.client.HTTPResponse:
        """Sends the request; returns when the head of the answer is there."""
        headers = {"Claude-Daemon-Control": PROTOCOL, "Accept": accept, "Connection": "close"}
        encoded = None
        if body is not None:
            headers["Content-Type"] = JSON
            encoded = json.dumps(body).encode()
        with suppress(BrokenPipeError):  # a daemon that refuses early has answered already
            self.request(method, path, encoded, headers)
        return self.getresponse()


class StreamCut(ControlError):
    """The daemon went away before its stream was complete."""


@contextmanager
def _translated(deadline: Deadline, *, begun: bool) -> Iterator[None]:
    """Foreign errors become ours where they enter. Only reads and writes of the socket belong inside.

    ``begun`` says whether the head of the answer has been read.
    """
    try:
        yield
    except TimeoutError:
        raise deadline.passed() from None
    except (ConnectionError, http.client.IncompleteRead):  # RemoteDisconnected is a ConnectionError
        if begun:
            raise StreamCut("the daemon went away in the middle of its answer") from None
        raise NotRunning("the daemon went away before it answered") from None
    except http.client.HTTPException as error:
        raise Mismatch(
            f"what answers does not speak HTTP as the control socket does ({type(error).__name__})"
        ) from None
    except OSError as error:
        raise ControlError(f"the control socket failed: {error}") from None


def _lines(response: http.client.HTTPResponse, deadline: Deadline) -> Iterator[bytes]:
    while True:
        with _translated(deadline, begun=True):
            line = response.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise Mismatch(f"the daemon sent a line of more than {MAX_LINE_BYTES} bytes")
        if stripped := line.strip():
            yield stripped


def decoded(line: bytes) -> Document:
    """The JSON object of a line; raises Mismatch for anything else."""
    document = _object(line)
    if document is None:
        raise Mismatch("the daemon sent a line that is not a JSON object")
    return document


def _read_document(response: http.client.HTTPResponse, deadline: Deadline) -> Document | None:
    with _translated(deadline, begun=True):
        body = response.read(MAX_DOCUMENT_BYTES + 1)
    if len(body) > MAX_DOCUMENT_BYTES:
        raise Mismatch(f"the daemon sent a document of more than {MAX_DOCUMENT_BYTES} bytes")
    if response.length:
        raise StreamCut("the daemon went away in the middle of its answer")
    return _object(body)


def _object(text: bytes) -> Document | None:
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _is_problem(response: http.client.HTTPResponse) -> bool:
    return response.headers.get_content_type() == PROBLEM


_BY_CODE: Mapping[str, type[ControlError]] = {"draining": NotReady, "not_ready": NotReady}
_BY_STATUS: Mapping[int, type[ControlError]] = {
    401: Denied,
    403: Denied,
    404: NotFound,
    409: Conflict,
    426: Mismatch,
    504: TimedOut,
}


def _refusal(status: int, problem: Document | None) -> ControlError:
    """The error that a refused request ends with; ``problem`` is its body, if that says why."""
    if problem is None:
        return _BY_STATUS.get(status, Mismatch)(f"the daemon answered HTTP {status} without saying why")
    code = str(problem.get("code") or f"http_{status}")
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status, ControlError)
    why = problem.get("detail") or problem.get("title") or f"HTTP {status}"
    sentence = f"{code}: {why}"
    if status == 426:
        sentence += f" (this claudectl speaks version {PROTOCOL} of the control protocol: install the daemon's own)"
    if status >= 500 and (request_id := problem.get("request_id")):
        sentence += f" (request {request_id})"
    return kind("\n".join([clean_line(sentence), *_faults(problem.get("errors"), why)]))


def _faults(errors: object, why: object) -> list[str]:
    """A line for each; one that says what ``why`` has said already is left out."""
    if not isinstance(errors, list):
        return []
    faults = [fault for fault in errors if isinstance(fault, dict) and fault.get("message") != why]
    return ["  " + clean_line(_fault(str(fault.get("path")), str(fault.get("message")))) for fault in faults]


def _fault(path: str, message: str) -> str:
    """Those of a configuration name file and key themselves."""
    return message if path in message else f"{path}: {message}"
