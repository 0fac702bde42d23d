"""The public port as a client sees it: HTTP, server-sent events and the WebSocket, by one key.

What goes wrong leaves as a :class:`Failed`, whose text says what and where.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from claudectl.clean import clean_line
from claudectl.render import Document, mapping

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

SUBPROTOCOL: Final = "claude-daemon.v1"
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""What is asked here is answered in a few words; a longer answer is somebody else's."""
MAX_LINE_BYTES: Final = 1024 * 1024


class Failed(Exception):
    """What was asked was not answered as it should be."""


class Answer(NamedTuple):
    """A whole answer: the headers in lower case, the JSON object or {}."""

    headers: Mapping[str, str]
    body: Document


class Web:
    """``url`` as the daemon tells it. ``seconds``: how long the server may be silent.

    TLS is not checked for a name: the address is this machine's own, as the control socket tells it, and the
    certificate is made for another.
    """

    def __init__(self, url: str, key: str | None, seconds: float) -> None:
        self._url = urlsplit(url)
        self._key = key
        self._seconds = seconds

    def get(self, path: str) -> Answer:
        """Raises Failed unless it is answered 200."""
        with self._asked("GET", path, None, {}) as response:
            return _whole(response)

    def post(self, path: str, body: Document, headers: Mapping[str, str] | None = None) -> Answer:
        """Raises Failed unless it is answered 200 or 202."""
        with self._asked("POST", path, body, headers or {}) as response:
            return _whole(response)

    @contextmanager
    def events(
        self, method: str, path: str, body: Document | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[Iterator[tuple[str, Document]]]:
        """Server-sent events as they come, each its type and its data. Raises Failed."""
        with self._asked(method, path, body, {"Accept": "text/event-stream", **(headers or {})}) as response:
            yield _events(response)

    @contextmanager
    def socket(self, path: str) -> Iterator[Conversation]:
        """A WebSocket of ours. Raises Failed."""
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        secure = self._url.scheme == "https"
        try:
            with connect(
                f"{'wss' if secure else 'ws'}://{self._url.netloc}{path}",
                additional_headers=self._headers(),
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]  # a NewType of str
                ssl=_unnamed() if secure else None,
                proxy=None,
                open_timeout=self._seconds,
                close_timeout=self._seconds,
            ) as connection:
                yield Conversation(connection, self._seconds)
        except (WebSocketException, OSError, EOFError) as error:
            raise Failed(_why(error)) from None

    def _headers(self) -> dict[str, str]:
        return {} if self._key is None else {"Authorization": f"Bearer {self._key}"}

    @contextmanager
    def _asked(
        self, method: str, path: str, body: Document | None, headers: Mapping[str, str]
    ) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(
            self._url.hostname or "", self._url.port or (443 if self._url.scheme == "https" else 80), self._seconds
        )
        try:
            connection.connect()
            if self._url.scheme == "https":
                connection.sock = _unnamed().wrap_socket(connection.sock)
            sent = {**self._headers(), "Connection": "close", **headers}
            encoded = None
            if body is not None:
                sent["Content-Type"] = "application/json"
                encoded = json.dumps(body).encode()
            connection.request(method, path, encoded, sent)
            response = connection.getresponse()
            if response.status >= 300:
                raise Failed(_refusal(response))
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise Failed(_why(error)) from None
        finally:
            connection.close()


class Conversation:
    """What is said over a WebSocket, each a JSON object. Reading raises what :meth:`Web.socket` makes a Failed of."""

    def __init__(self, connection: ClientConnection, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds

    def say(self, document: Document) -> None:
        self._connection.send(json.dumps(document))

    def __iter__(self) -> Iterator[Document]:
        while True:
            told = self._connection.recv(timeout=self._seconds)
            yield _object(told if isinstance(told, bytes) else told.encode())


def _unnamed() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _whole(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(headers, _object(response.read(MAX_ANSWER_BYTES)))


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, Document]]:
    kind = "message"
    while line := response.readline(MAX_LINE_BYTES):
        name, _, value = line.decode(errors="replace").rstrip("\r\n").partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, _object(value.encode())
            kind = "message"


def _object(text: bytes) -> Document:
    try:
        return mapping(json.loads(text))
    except ValueError:
        return {}


def _refusal(response: http.client.HTTPResponse) -> str:
    """Each dialect has its own way to say why."""
    body = _object(response.read(MAX_ANSWER_BYTES))
    why = mapping(body.get("error")).get("message") or body.get("detail") or body.get("reason")
    return f"HTTP {response.status}" + (f": {clean_line(str(why))}" if why else "")


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    told = error.strerror if isinstance(error, OSError) else None
    return clean_line(str(told or error) or type(error).__name__)
