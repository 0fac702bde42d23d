"""One Claude Code process from spawn to burial.

The pool decides what a worker does; the worker knows how to do it, and tells the pool when something changed. All
waiting is on the process itself: its messages or its end, each with a deadline.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.event import Emission
from claude_daemon.core.task import Outcome, State, Usage
from claude_daemon.core.worker import WorkerState, advance
from claude_daemon.engine.capabilities import Capabilities
from claude_daemon.engine.plan import Binding, Content, Shape, TurnPlan, without_commands
from claude_daemon.engine.process import Process
from claude_daemon.engine.stream import (
    CLEAR_LINE,
    assistant_line,
    control_answer,
    control_line,
    is_result,
    user_line,
)
from claude_daemon.engine.turn import TurnReader
from claude_daemon.ports import Account, Ended

# Messages that wait for a slow reader before the CLI's stdout is read no further: a few thousand deltas.
INBOX_MESSAGES = 4096
START_TIMEOUT_S = 30.0  # a cold disk cache makes 365 MB of executable slow
CONTROL_TIMEOUT_S = 10.0
INTERRUPT_GRACE_S = 3.0  # measured: 6-19 ms
STOP_STEP_S = 1.5  # between SIGINT, SIGTERM and SIGKILL


class WorkerLost(Exception):
    """The process ended, or does not answer, while something was expected of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLimits:
    """Deadlines of a turn, in seconds: ``stall`` without any sign of life, ``turn`` for the whole."""

    stall_seconds: float
    turn_seconds: float


class Worker:
    """A process, its state, and what it is bound to. Not for two callers at once: the pool sees to that."""

    def __init__(
        self, worker_id: str, account: Account | None, model: str, capabilities: Capabilities, wanted: Shape
    ) -> None:
        self.id = worker_id
        self.account = account
        self.wanted = wanted
        self.state = WorkerState.STARTING
        self.binding: Binding | None = None
        self.model = model
        self.turns = 0
        self.born = time.monotonic()
        self.last_used = self.born
        self.process: Process | None = None
        self.home: Path | None = None
        self.thinking: int | None = None
        self._inbox: list[dict[str, Any]] = []
        self._arrived: asyncio.Future[None] | None = None
        self._held = False
        self._request_number = 0
        self._turn_open = False
        self._can = capabilities
        self.ending = False  # its end has been asked for, so it is no crash

    def __repr__(self) -> str:
        bound = self.binding.label if self.binding else "-"
        return f"<Worker {self.id} {self.state} bound={bound} turns={self.turns}>"

    def move(self, to: WorkerState) -> None:
        self.state = advance(self.state, to)

    def received(self, messages: list[dict[str, Any]]) -> None:
        self._inbox.extend(messages)
        if len(self._inbox) > INBOX_MESSAGES and not self._held and self.process is not None:
            self._held = True
            self.process.hold(True)
        self.wake()

    def wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def _messages(self) -> list[dict[str, Any]]:
        """What has arrived, waiting for it if need be. Raises :class:`WorkerLost` when nothing can arrive any more."""
        if not self._inbox:
            if self.process is None or self.process.gone:
                raise WorkerLost(self.obituary())
            self._arrived = asyncio.get_running_loop().create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None
        messages, self._inbox = self._inbox, []
        if self._held and self.process is not None:
            self._held = False
            self.process.hold(False)
        return messages

    def obituary(self) -> str:
        """What is known of an end nobody asked for."""
        if self.process is None:
            return "the process was never started"
        if self.process.broken:
            return self.process.broken
        said = self.process.stderr_tail().strip()
        return f"the Claude Code process ended with status {self.process.returncode}" + (f": {said}" if said else "")

    def _write(self, data: bytes) -> None:
        assert self.process is not None
        self.process.write(data)

    def _control(self, subtype: str, **fields: Any) -> str:
        self._request_number += 1
        request_id = f"{subtype}-{self._request_number}"
        self._write(control_line(request_id, subtype, **fields))
        return request_id

    async def ask(self, subtype: str, timeout_seconds: float = CONTROL_TIMEOUT_S, **fields: Any) -> Mapping[str, Any]:
        """A control request and its answer (``subtype`` success or error). Raises :class:`WorkerLost`."""
        request_id = self._control(subtype, **fields)
        async with self._deadline(timeout_seconds, f"no answer to {subtype}"):
            while True:
                for message in await self._messages():
                    answer = control_answer(message)
                    if answer is not None and answer[0] == request_id:
                        return answer[1]

    async def wait_result(self, timeout_seconds: float) -> Mapping[str, Any]:
        """The next ``result``. Raises :class:`WorkerLost`, at the timeout too."""
        async with self._deadline(timeout_seconds, "no result"):
            while True:
                for message in await self._messages():
                    if is_result(message):
                        return message

    @staticmethod
    def _deadline(seconds: float, what: str) -> _Deadline:
        return _Deadline(seconds, what)

    async def ready(self) -> None:
        """Waits until the process answers at all. It stays unbound: nothing here counts as its first message."""
        await self.ask("mcp_status", timeout_seconds=START_TIMEOUT_S)

    def bind(self, binding: Binding) -> None:
        """Binds an unbound process: written together with its first message, not awaited (the first one wins)."""
        self.binding = binding
        if binding.plain or self.wanted.binding is not None:
            return
        fields: dict[str, Any] = {}
        if binding.system:
            fields["systemPrompt"] = binding.system
        if binding.schema is not None:
            fields["jsonSchema"] = orjson.loads(binding.schema)
        self._control("initialize", **fields)

    async def clear(self) -> bool:
        """Empties the conversation (``/clear``); False if the CLI did not do so."""
        self._write(CLEAR_LINE)
        cleared = False
        async with self._deadline(CONTROL_TIMEOUT_S, "no answer to /clear"):
            while True:
                for message in await self._messages():
                    cleared = cleared or message.get("type") == "conversation_reset"
                    if is_result(message):
                        return cleared and not message.get("is_error")

    async def turn(
        self, plan: TurnPlan, cli_model: str, limits: TurnLimits
    ) -> AsyncIterator[Sequence[Emission | Ended]]:
        """Runs one turn; the last batch ends in :class:`Ended`. Closing it early leaves the turn to :meth:`settle`."""
        self._turn_open = True
        if self.account is not None:
            self.account.begin()
        reader = TurnReader(
            show_thinking=plan.show_thinking,
            structured=plan.binding.schema is not None,
            max_tokens=plan.max_tokens,
        )
        watch = _Watch(limits)
        awaited_model = self._prepare(plan, cli_model)
        try:
            if self._can.history:
                await self._replay(plan, watch)
            self._write(self._user_line(plan.last if self._can.history else plan.told_at_once()))
            interrupted = False
            while self._turn_open:
                async with watch:
                    messages = await self._messages()
                batch = self._digest(messages, reader, watch, awaited_model)
                if reader.interrupt and not interrupted:
                    interrupted = True
                    self._interrupt("the turn is over", watch)
                if batch:
                    yield batch
        except TurnTimeout as timeout:
            yield [Ended(outcome=self._metered(_failed(timeout.failure)))]
        except WorkerLost as lost:
            self._turn_open = False
            crashed = Failure(code=Code.ENGINE_CRASHED, message=str(lost))
            yield [Ended(outcome=self._metered(_failed(crashed)))]

    def _digest(
        self, messages: list[dict[str, Any]], reader: TurnReader, watch: _Watch, awaited_model: str | None
    ) -> list[Emission | Ended]:
        """What the messages mean for the caller; the turn is closed with its :class:`Ended`."""
        batch: list[Emission | Ended] = []
        for message in messages:
            watch.seen(message)
            self._check_model(message, awaited_model, reader)
            batch += reader.feed(message)
            if reader.outcome is not None:
                self._turn_open = False
                batch.append(Ended(outcome=self._metered(reader.outcome)))
                break
        return batch

    def _prepare(self, plan: TurnPlan, cli_model: str) -> str | None:
        """Model and thinking, written with the message and not awaited; the id of the model's request, if any."""
        if plan.thinking_tokens is not None and plan.thinking_tokens != self.thinking:
            self._control("set_max_thinking_tokens", max_thinking_tokens=plan.thinking_tokens)
            self.thinking = plan.thinking_tokens
        if cli_model == self.model:
            return None
        self.model = cli_model
        return self._control("set_model", model=cli_model)

    def _check_model(self, message: Mapping[str, Any], awaited: str | None, reader: TurnReader) -> None:
        """A model that the CLI refuses would leave the turn to the one before: that is an error, not an answer."""
        if awaited is None or message.get("type") != "control_response":
            return
        answer = control_answer(message)
        if answer is not None and answer[0] == awaited and answer[1].get("subtype") == "error":
            self.model = ""  # unknown now: set again at the next turn
            said = str(answer[1].get("error", "the model was refused"))
            reader.fail(Failure(code=Code.MODEL_NOT_FOUND, message=said, param="model"))

    def _user_line(self, content: Content, *, query: bool = True) -> bytes:
        if self._can.composed:
            return user_line(content, query=query)
        return user_line(without_commands(content), query=query, composed=False)

    async def _replay(self, plan: TurnPlan, watch: _Watch) -> None:
        """Earlier exchanges, one by one: without waiting for each the order upstream would be wrong."""
        for content, answer in plan.history:
            self._write(self._user_line(content, query=False))
            async with watch:
                await self._history_step()
            self._write(assistant_line(answer))

    async def _history_step(self) -> None:
        while True:
            for message in await self._messages():
                if is_result(message):
                    return

    def _interrupt(self, reason: str, watch: _Watch | None = None) -> None:
        if self.account is not None:
            self.account.bar(reason)
        if self._can.interrupt:
            self._control("interrupt")
        elif self.process is not None:
            self.ending = True  # SIGINT ends the turn well, and the process with it
            self.process.kill(signal.SIGINT)
        if watch is not None:
            watch.stall_within(INTERRUPT_GRACE_S)

    def _metered(self, outcome: Outcome) -> Outcome:
        """The outcome with what the broker saw: its usage, and the upstream's own word for an error."""
        if self.account is None:
            return outcome
        usage = self.account.usage
        failure = outcome.failure
        if failure is not None and failure.code in _TOLD_BETTER_BY_THE_GATEWAY and self.account.failure is not None:
            failure = self.account.failure
        if outcome.state is State.SUCCEEDED and usage == Usage():
            usage = outcome.usage
        return Outcome(state=outcome.state, usage=usage, stop_reason=outcome.stop_reason, failure=failure)

    async def settle(self) -> bool:
        """Ends a turn that its caller left; True when the process can be used again."""
        if not self._turn_open:
            return not self.ending
        self._turn_open = False
        try:
            self._interrupt("the caller has left")
            await self.wait_result(INTERRUPT_GRACE_S)
        except WorkerLost:
            return False
        return True

    async def stop(self) -> None:
        """The stop ladder: end of input, SIGINT, SIGTERM, SIGKILL; then whatever is left of its group."""
        self.ending = True
        if self.account is not None:
            self.account.close()
        process = self.process
        if process is None:
            return
        process.close_stdin()
        if self._turn_open or not await process.wait_gone(STOP_STEP_S):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                process.kill(number)
                if await process.wait_gone(STOP_STEP_S):
                    break
        process.bury()


_TOLD_BETTER_BY_THE_GATEWAY = frozenset(
    {
        Code.UPSTREAM_INVALID_REQUEST,
        Code.UPSTREAM_NOT_FOUND,
        Code.UPSTREAM_TOO_LARGE,
        Code.UPSTREAM_CREDENTIAL,
        Code.UPSTREAM_RATE_LIMITED,
        Code.UPSTREAM_OVERLOADED,
        Code.UPSTREAM_ERROR,
        Code.UPSTREAM_UNREACHABLE,
        Code.MODEL_NOT_FOUND,
    }
)


class TurnTimeout(Exception):
    """A turn went over one of its deadlines."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _Deadline:
    """``asyncio.timeout`` that raises :class:`WorkerLost` with a sentence."""

    def __init__(self, seconds: float, what: str) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._what = f"{what} within {seconds:g} s"

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self._timeout.__aexit__(*exc)
        except TimeoutError:
            raise WorkerLost(self._what) from None


class _Watch:
    """The two deadlines of a turn, as a context for each wait; raises :class:`TurnTimeout`."""

    def __init__(self, limits: TurnLimits) -> None:
        self._limits = limits
        self._ends = time.monotonic() + limits.turn_seconds
        self._grace = 0.0  # the CLI announced a pause before its next try
        self._stall = limits.stall_seconds
        self._timeout: asyncio.Timeout | None = None

    def seen(self, message: Mapping[str, Any]) -> None:
        retrying = message.get("type") == "system" and message.get("subtype") == "api_retry"
        self._grace = (message.get("retry_delay_ms") or 0) / 1000 if retrying else 0.0

    def stall_within(self, seconds: float) -> None:
        self._stall = min(self._stall, seconds)

    async def __aenter__(self) -> None:
        wait = min(self._stall + self._grace, self._ends - time.monotonic())
        self._timeout = asyncio.timeout(wait)
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        assert self._timeout is not None
        try:
            await self._timeout.__aexit__(*exc)
        except TimeoutError:
            raise TurnTimeout(self._failure()) from None

    def _failure(self) -> Failure:
        if time.monotonic() >= self._ends:
            why = f"the turn took longer than {self._limits.turn_seconds:g} s"
            return Failure(code=Code.DEADLINE, message=why)
        why = f"nothing came from the model for {self._limits.stall_seconds:g} s"
        return Failure(code=Code.STALLED, message=why)


def _failed(failure: Failure) -> Outcome:
    return Outcome(state=State.FAILED, failure=failure)
