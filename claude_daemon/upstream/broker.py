"""The broker: the loopback door through which workers reach the Messages API.

A worker holds a random token that is worth nothing elsewhere. The broker knows whose it is, adds the real credential,
meters what passes and keeps the upstream's own word for an error. It can also shut: after a turn's last model call
nothing more goes out, whatever the CLI would like to do.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import Context, copy_context
from typing import Any, Final

import aiohttp
import orjson
from aiohttp import web

from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.task import Usage
from claude_daemon.core.trace import HEADER, TRACE, Trace
from claude_daemon.ports import Limit, Loan
from claude_daemon.upstream import canned
from claude_daemon.upstream.client import MessagesClient, UpstreamFailed, passed_on
from claude_daemon.upstream.meter import CallMeter, call_fields
from claude_daemon.upstream.rewrite import NoSystemBlock, on_loan

# A worker's request holds a whole conversation with its images; the edge has bounded those already.
_MAX_BODY_BYTES: Final = 64 * 1024 * 1024
_PATHS: Final = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
# After these the CLI would go on with calls of its own making, which nobody asked for.
_LAST_STOP_REASONS: Final = frozenset({"max_tokens", "refusal", "model_context_window_exceeded"})
_MAX_AT_ONCE: Final = 16
"""Requests of one worker: Claude Code makes a few at once, for its subagents. What else an agent starts can find the
worker's token; each request may hold a body of ours in memory, and each call could be the one that spends the rest."""
_BARRED_STATUS: Final = 403  # the one status that the CLI never retries
_SHUTDOWN_S: Final = 0.1  # no worker is left by then


class WorkerAccount:
    """One worker's standing (:class:`~claude_daemon.ports.Account`).

    A call belongs to the turn in which it began: one that a turn left behind counts for no later turn.
    """

    def __init__(self, broker: Broker, worker_id: str, *, canned: bool) -> None:
        self.worker_id = worker_id
        self.token = "cdw_" + secrets.token_urlsafe(32)
        self.canned = canned
        self.base_url = broker.base_url
        self.barred: str | None = None
        self.request_id = ""
        self.context = Context()
        """That in which the turn began: what is told of its calls is told with its ids."""
        self.loan: Loan | None = None
        self.limit: Limit | None = None
        self.ends_with_tools = False
        self.forbids: Callable[[str], str | None] | None = None
        self.forbidden: str | None = None
        self.calls = 0
        self.at_once = 0
        self._broker = broker
        self._settled = Usage()
        self._under_way: dict[CallMeter, web.BaseRequest] = {}
        self._failure: Failure | None = None

    def __repr__(self) -> str:
        return f"<WorkerAccount {self.worker_id} calls={self.calls} barred={self.barred!r}>"

    def begin(
        self,
        request_id: str = "",
        loan: Loan | None = None,
        limit: Limit | None = None,
        *,
        ends_with_tools: bool = False,
    ) -> None:
        self.ends_with_tools = ends_with_tools
        self.context = copy_context()
        self.barred, self.request_id, self.loan, self.limit, self.calls = None, request_id, loan, limit, 0
        self._settled, self._under_way, self._failure, self.forbidden = Usage(), {}, None, None

    def bar(self, reason: str) -> None:
        self.barred = reason
        for request in self._under_way.values():
            _abort(request)  # which cancels its handler, and with it the call upstream

    def last_call(self, reason: str) -> None:
        """Like :meth:`bar`, but the call that is under way may end."""
        self.barred = reason

    @property
    def usage(self) -> Usage:
        return sum((meter.usage for meter in self._under_way), self._settled)

    @property
    def failure(self) -> Failure | None:
        return self._failure

    def close(self) -> None:
        self._broker.forget(self)
        self.bar("the worker is gone")

    def refusal(self) -> str | None:
        """Why no further call is made now."""
        if self.barred is None and self.limit is not None:
            self.barred = self.limit(self.usage)
        return self.barred

    def judge(self, meter: CallMeter) -> None:
        """Raises _Forbidden."""
        if self.forbids is not None and meter.model is not None and (why := self.forbids(meter.model)) is not None:
            self.forbidden = why
            raise _Forbidden

    def call_begins(self, meter: CallMeter, request: web.BaseRequest) -> None:
        self.calls += 1
        self._under_way[meter] = request

    def call_ends(self, meter: CallMeter, failure: Failure | None) -> None:
        if self._under_way.pop(meter, None) is not None:
            self._settled += meter.usage
            if failure is not _LEFT:
                self._failure = failure


# The worker left, or was cut off by us: no failure of the upstream, so none that a caller is told.
_LEFT: Final = Failure(code=Code.CANCELLED, message="the worker left its call")


class _WorkerLeft(Exception):
    """The worker closed its connection; what the upstream has still to say interests nobody."""


class _Forbidden(Exception):
    """The answer is that of a model which may not answer in this turn."""


class _Call:
    """One call of a worker, as it is told: a span below that of the turn in which it began."""

    def __init__(self, account: WorkerAccount, path: str) -> None:
        self.context = account.context
        self._account = account
        self._request_id = account.request_id
        self._path = path
        self._began = time.monotonic()
        above: Trace | None = self.context.get(TRACE)
        self._span = None if above is None else above.below(secrets.token_bytes)

    def headers(self, given: Mapping[str, str]) -> dict[str, str]:
        """Those that go upstream with it."""
        traced = {} if self._span is None else {HEADER: self._span.header}
        return {**passed_on(given), **traced}

    def fields(self, meter: CallMeter, failure: Failure | None) -> dict[str, Any]:
        return {
            "worker_id": self._account.worker_id,
            "request_id": self._request_id,
            "path": self._path,
            **({} if self._span is None else self._span.fields),
            **call_fields(meter, failure, time.monotonic() - self._began),
        }


class Broker:
    """An HTTP server on a random loopback port; accounts by token. Implements :class:`~claude_daemon.ports.Gateway`."""

    def __init__(
        self,
        client: MessagesClient | None,
        told: Callable[[str, dict[str, Any]], None] = lambda name, fields: None,
    ) -> None:
        self._client = client
        self._told = told
        self._accounts: dict[str, WorkerAccount] = {}
        self._runner: web.ServerRunner | None = None
        self.base_url = ""

    async def start(self) -> None:
        """Listens on 127.0.0.1; :attr:`base_url` is known from here on."""
        self._runner = web.ServerRunner(
            # a worker that leaves takes its call upstream with it, silent ones too
            web.Server(self._answer, access_log=None, handler_cancellation=True),
            handle_signals=False,
            shutdown_timeout=_SHUTDOWN_S,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=128)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://{host}:{port}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def open(self, worker_id: str, *, canned: bool = False) -> WorkerAccount:
        account = WorkerAccount(self, worker_id, canned=canned)
        self._accounts[account.token] = account
        return account

    def forget(self, account: WorkerAccount) -> None:
        self._accounts.pop(account.token, None)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        account = self._accounts.get(_token(request))
        if account is None:
            return _refusal(401, "authentication_error", "no such worker")
        if request.method != "POST" or request.path not in _PATHS:
            return _refusal(404, "not_found_error", "the broker passes on /v1/messages alone")
        if account.at_once >= _MAX_AT_ONCE:
            return _refusal(429, "rate_limit_error", f"a worker makes {_MAX_AT_ONCE} calls at once")
        account.at_once += 1
        try:
            return await self._asked(request, account)
        finally:
            account.at_once -= 1

    async def _asked(self, request: web.BaseRequest, account: WorkerAccount) -> web.StreamResponse:
        if (why := account.refusal()) is not None:
            return _refusal(_BARRED_STATUS, "permission_error", why)
        body = await _read(request)
        if body is None:
            return _refusal(413, "request_too_large", f"more than {_MAX_BODY_BYTES} bytes")
        if (why := account.refusal()) is not None:  # who begins early and sends late gains nothing by it
            return _refusal(_BARRED_STATUS, "permission_error", why)
        if account.canned:
            return await canned.answer(request, body)
        if self._client is None:
            return _refusal(_BARRED_STATUS, "permission_error", "the daemon has no credential for the upstream")
        if account.loan is not None:
            try:
                body = on_loan(body, account.loan)
            except (NoSystemBlock, ValueError):
                account.last_call("the system prompt of this turn could not be put in place")
                return _refusal(_BARRED_STATUS, "permission_error", str(account.barred))
        return await self._pass_on(request, account, body)

    async def _pass_on(self, request: web.BaseRequest, account: WorkerAccount, body: bytes) -> web.StreamResponse:
        """One call upstream and its answer, metered. However it ends, the account hears of it."""
        assert self._client is not None
        meter, response = CallMeter(streaming=True), web.StreamResponse()
        account.call_begins(meter, request)
        call = _Call(account, request.path)
        failure: Failure | None = _LEFT  # what it is if we are cancelled half-way
        try:
            async with self._client.call(request.path_qs, body, call.headers(request.headers)) as upstream:
                meter.streaming = upstream.content_type == "text/event-stream"
                response.headers["content-type"] = upstream.headers.get("content-type", "application/json")
                with _worker_may_leave():
                    await response.prepare(request)
                await _copy(upstream, response, meter, account)
            failure = meter.failure
            await response.write_eof()
            return response
        except UpstreamFailed as failed:
            failure = failed.failure
            if failure.code is Code.UPSTREAM_CREDENTIAL:
                # The credential is ours: a repeat would be the same call, and the CLI repeats a 401 with a pause.
                # A 400 or 404 does not bar: the CLI's next tries leave out what an older or foreign gateway may not
                # know (beta features, streaming), which mends the turn there; a refused call costs no tokens.
                account.last_call(failure.message)
            if not response.prepared:
                return _as_upstream_said(failed)
            _abort(request)
            return response
        except _Forbidden:
            failure = None  # of nobody's but who has asked for it
            _abort(request)
            return response
        except (_WorkerLeft, ConnectionResetError):
            return response
        finally:
            account.call_ends(meter, failure)
            call.context.run(self._told, "model_call", call.fields(meter, failure))


async def _copy(
    upstream: aiohttp.ClientResponse, response: web.StreamResponse, meter: CallMeter, account: WorkerAccount
) -> None:
    """Only a streamed call can be cut by a limit of ours: Claude Code also asks whether a model exists, with one
    token."""
    held: list[bytes] = []  # an answer that is not streamed is judged when it is whole
    async for chunk in upstream.content.iter_any():
        meter.feed(chunk)
        account.judge(meter)
        if account.forbids is not None and not meter.streaming:
            held.append(chunk)
            continue
        if meter.stop_reason in _LAST_STOP_REASONS:
            account.last_call(f"the turn ended with {meter.stop_reason}")
        _end_with_tools(meter, account)  # before the worker hears of it
        with _worker_may_leave():
            await response.write(chunk)
    meter.end()
    account.judge(meter)
    _end_with_tools(meter, account)
    for chunk in held:
        with _worker_may_leave():
            await response.write(chunk)


def _end_with_tools(meter: CallMeter, account: WorkerAccount) -> None:
    if account.ends_with_tools and meter.stop_reason == "tool_use":
        account.last_call("the turn ended in tool calls, which are the client's to answer")


@contextlib.contextmanager
def _worker_may_leave() -> Iterator[None]:
    """Keeps the worker's end of the connection apart from the upstream's: aiohttp has one error for both."""
    try:
        yield
    except ConnectionResetError as error:
        raise _WorkerLeft from error


def _token(request: web.BaseRequest) -> str:
    bearer = request.headers.get("Authorization", "")
    return request.headers.get("x-api-key", "") or bearer.removeprefix("Bearer ")


async def _read(request: web.BaseRequest) -> bytes | None:
    pieces, held = [], 0
    async for chunk in request.content.iter_any():
        pieces.append(chunk)
        held += len(chunk)
        if held > _MAX_BODY_BYTES:
            return None
    return b"".join(pieces)


def _refusal(status: int, kind: str, message: str) -> web.Response:
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")


def _as_upstream_said(failed: UpstreamFailed) -> web.Response:
    if failed.status is None:
        return _refusal(502, "api_error", failed.failure.message)
    headers = {"content-type": "application/json", **failed.headers}
    if failed.failure.code is Code.UPSTREAM_CREDENTIAL:
        headers["x-should-retry"] = "false"
    return web.Response(status=failed.status, body=failed.body, headers=headers)


def _abort(request: web.BaseRequest) -> None:
    """Cuts the worker's connection as the upstream's was cut, so that the CLI sees just that."""
    if request.transport is not None:
        request.transport.abort()
