"""One Claude Code process from spawn to burial.

The pool decides what a worker does; the worker knows how to do it, and tells the pool when something changed. All
waiting is on the process itself: its messages or its end, each with a deadline.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from claude_daemon.core.errors import UPSTREAM_SAID_NO, Code, Failure
from claude_daemon.core.event import Emission
from claude_daemon.core.task import Outcome, State, Usage
from claude_daemon.core.worker import WorkerState, advance
from claude_daemon.engine import client_tools
from claude_daemon.engine.capabilities import Capabilities
from claude_daemon.engine.deadline import Deadline, TurnLimits, TurnTimeout, Watch, WorkerLost
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
from claude_daemon.ports import Account, Ended, Limit, Loan, Spending

# What waits for a slow reader before the CLI's stdout is read no further: a few thousand deltas, or some large ones.
INBOX_MESSAGES = 4096
INBOX_BYTES = 2 * 1024 * 1024
START_TIMEOUT_S = 60.0  # a cold disk cache makes 365 MB of executable slow, and a machine at its limit everything
CONTROL_TIMEOUT_S = 10.0
INTERRUPT_GRACE_S = 3.0  # measured: 6-19 ms
_NAMES_TOLD = 5  # of tools in an error message
STOP_STEP_S = 1.5  # between SIGINT, SIGTERM and SIGKILL


class _Failing(Protocol):
    def fail(self, failure: Failure) -> None: ...


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
        self.lifetime_s = float("inf")
        self.last_used = self.born
        self.process: Process | None = None
        self.home: Path | None = None
        self.config_dir: Path | None = None
        self.nonce: str | None = None
        self.request_id = ""  # of the turn under way, or the last one
        self.thinking: int | None = None
        self.message: str | None = None  # the id that the next user message has in the transcript
        self._inbox: list[dict[str, Any]] = []
        self._inbox_bytes = 0
        self._arrived: asyncio.Future[None] | None = None
        self._held = False
        self._request_number = 0
        self._turn_open = False
        self._must_succeed: dict[str, tuple[Code, str | None]] = {}  # control requests whose refusal fails the turn
        self._refused: Failure | None = None
        self._loan: Loan | None = None
        self._listed = False  # the CLI has been told of the tools that it is bound to
        self._can = capabilities
        self.ending = False  # its end has been asked for, so it is no crash
        self.unfit: str | None = None  # why it should serve no further turn
        self.form_refused = False  # the upstream does not know the form in which a lent schema is asked for

    def __repr__(self) -> str:
        bound = self.binding.label if self.binding else "-"
        return f"<Worker {self.id} {self.state} bound={bound} turns={self.turns}>"

    def move(self, to: WorkerState) -> None:
        self.state = advance(self.state, to)
        if to is WorkerState.IDLE:
            self._inbox.clear()
            self._inbox_bytes = 0

    def rss_bytes(self) -> int | None:
        """Resident memory, None where nobody can tell."""
        return self.process.rss_bytes() if self.process is not None else None

    def received(self, messages: list[dict[str, Any]], size_bytes: int) -> None:
        for message in messages:
            if client_tools.is_server_request(message):
                self._serve(message)
        if self.state is WorkerState.IDLE:
            return  # nobody has asked anything, and the next turn is not to take it for its own
        self._inbox.extend(messages)
        self._inbox_bytes += size_bytes
        full = len(self._inbox) > INBOX_MESSAGES or self._inbox_bytes > INBOX_BYTES
        if full and not self._held and self.process is not None:
            self._held = True
            self.process.hold(True)
        self.wake()

    def _serve(self, message: Mapping[str, Any]) -> None:
        """As the MCP server of the client's tools, whatever the worker is doing: the CLI waits for its answers."""
        listed = self.binding.tools if self.binding is not None else None
        answer = client_tools.server_answer(message, listed)
        if answer is not None and self.process is not None and not self.process.gone:
            self._write(answer)
        self._listed = self._listed or client_tools.method(message) == "tools/list"

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
        messages, self._inbox, self._inbox_bytes = self._inbox, [], 0
        if self._held and self.process is not None:
            self._held = False
            self.process.hold(False)
        for message in messages:
            self._notice(message)
        return messages

    def _notice(self, message: Mapping[str, Any]) -> None:
        """A model or binding that the CLI refuses would leave the turn to the one before: an error, not an answer.

        Noticed whoever reads: a caller that has left must not leave such a process to the next one.
        """
        answer = control_answer(message)
        if answer is None or answer[0] not in self._must_succeed:
            return
        code, param = self._must_succeed.pop(answer[0])
        if answer[1].get("subtype") == "error":
            said = str(answer[1].get("error") or "Claude Code refused the request")
            self.unfit = f"it refused {answer[0]}"
            self._refused = Failure(code=code, message=said, param=param)

    def obituary(self) -> str:
        """What is known of an end nobody asked for; fit for a caller's eyes, unlike :meth:`last_words`."""
        if self.process is None:
            return "the process was never started"
        if self.process.broken:
            return self.process.broken
        return f"the Claude Code process ended with status {self.process.returncode}"

    def last_words(self) -> str:
        """The end of its stderr, for the log alone: nobody knows what the CLI writes there."""
        return self.process.stderr_tail().strip() if self.process is not None else ""

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
        async with Deadline(timeout_seconds, f"no answer to {subtype}"):
            while True:
                for message in await self._messages():
                    answer = control_answer(message)
                    if answer is not None and answer[0] == request_id:
                        return answer[1]

    async def wait_result(self, timeout_seconds: float) -> Mapping[str, Any]:
        """The next ``result``. Raises :class:`WorkerLost`, at the timeout too."""
        async with Deadline(timeout_seconds, "no result"):
            while True:
                for message in await self._messages():
                    if is_result(message):
                        return message

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
        if binding.tools is not None:
            fields["sdkMcpServers"] = [client_tools.SERVER]
        self._must_succeed[self._control("initialize", **fields)] = (Code.UPSTREAM_INVALID_REQUEST, None)

    async def clear(self) -> bool:
        """Empties the conversation (``/clear``); False if the CLI did not do so."""
        self._write(CLEAR_LINE)
        cleared = False
        async with Deadline(CONTROL_TIMEOUT_S, "no answer to /clear"):
            while True:
                for message in await self._messages():
                    cleared = cleared or message.get("type") == "conversation_reset"
                    if is_result(message):
                        return cleared and not message.get("is_error")

    async def turn(
        self,
        plan: TurnPlan,
        cli_model: str,
        limits: TurnLimits,
        request_id: str = "",
        spending: Spending | None = None,
    ) -> AsyncIterator[Sequence[Emission | Ended]]:
        """Runs one turn; the last batch ends in :class:`Ended`. Closing it early leaves the turn to :meth:`settle`."""
        self._turn_open, self.request_id, self._loan = True, request_id, self._loan_for(plan)
        by_tool = plan.binding.schema is not None and (self._loan is None or self._loan.schema is None)
        reader = TurnReader(
            show_thinking=plan.show_thinking,
            structured=by_tool,
            max_tokens=plan.max_tokens,
            tools=plan.tools,
        )
        if self.account is not None:
            limit = None if spending is None else self.ends_turn(reader, spending)
            self.account.begin(request_id, self._loan, limit, ends_with_tools=plan.binding.tools is not None)
        watch = Watch(limits)
        self._prepare(plan, cli_model)
        try:
            if plan.binding.tools is not None:
                await self._offer(reader, watch)
            if self._can.history and not reader.interrupt:
                await self._replay(plan, reader, watch)
            if reader.interrupt:  # refused before anything was asked: there is no turn to interrupt
                self._turn_open = False
                yield self._given_up(reader, Failure(code=Code.ENGINE_CRASHED, message="the turn did not begin"))
                return
            self._write(self._user_line(plan.last if self._can.history else plan.told_at_once()))
            async with aclosing(self._answer(reader, watch, plan.tools)) as batches:
                async for batch in batches:
                    yield batch
        except TurnTimeout as timeout:
            yield self._given_up(reader, timeout.failure)
        except WorkerLost as lost:
            self._turn_open = False
            yield self._given_up(reader, self._death(lost))

    def ends_turn(self, reader: _Failing, why: Callable[[Usage], Failure | None]) -> Limit:
        """A limit by which no further model call is made once there is a reason: the turn ends there, with that."""

        def limit(usage: Usage) -> str | None:
            failure = why(usage)
            if failure is None:
                return None
            reader.fail(failure)
            self.wake()
            return failure.message

        return limit

    async def _answer(
        self, reader: TurnReader, watch: Watch, tools: frozenset[str]
    ) -> AsyncGenerator[Sequence[Emission | Ended]]:
        """Reads until the turn is over, and interrupts it where the reader asks for that."""
        interrupted = False
        while self._turn_open:
            if reader.interrupt and not interrupted:
                interrupted = True
                self._interrupt("the turn is over", watch)
            async with watch:
                messages = await self._messages()
            batch = self._digest(messages, reader, watch, tools)
            if batch:
                yield batch

    def _digest(
        self, messages: list[dict[str, Any]], reader: TurnReader, watch: Watch, tools: frozenset[str]
    ) -> list[Emission | Ended]:
        """What the messages mean for the caller; the turn is closed with its :class:`Ended`."""
        batch: list[Emission | Ended] = []
        if self._refused is not None:
            reader.fail(self._refused)
        for message in messages:
            watch.seen(message)
            if lacking := client_tools.missing(message, tools):
                reader.fail(refused_tools(f"Claude Code does not take {', '.join(lacking[:_NAMES_TOLD])}"))
            batch += reader.feed(message)
            if reader.outcome is not None:
                self._turn_open = False
                batch.append(self._ended(reader.outcome))
                break
        return batch

    def _death(self, lost: WorkerLost) -> Failure:
        """Why the turn under way ends with its process."""
        return Failure(code=Code.ENGINE_CRASHED, message=str(lost))

    def _given_up(self, reader: TurnReader, failure: Failure) -> Sequence[Emission | Ended]:
        """The end of a turn whose ``result`` will not be waited for; an answer that was complete stays one."""
        told = reader.give_up()
        outcome = reader.outcome or Outcome(state=State.FAILED, failure=failure)
        return [*told, self._ended(outcome)]

    def _ended(self, outcome: Outcome) -> Ended:
        """How the turn ended. A form that only a loan asked for, and that the upstream refuses, is no fault of the
        request: it is tried again on a process of its own."""
        outcome = self._metered(outcome)
        lent_form = self._loan is not None and self._loan.schema is not None
        if lent_form and outcome.failure is not None and _names_the_form(outcome.failure):
            self.form_refused = True
        return Ended(outcome=outcome, again=self.form_refused)

    def _loan_for(self, plan: TurnPlan) -> Loan | None:
        """What the gateway must put in the place of this worker's own binding, if the turn is only lent."""
        own, asked = self.binding, plan.binding
        if own is None:
            return None
        same = (own.system, own.schema) == (asked.system, asked.schema)
        if same and plan.tool_choice is None:
            return None
        schema = None if same else asked.schema
        return Loan(own=own.system, asked=asked.system, schema=schema, tool_choice=plan.tool_choice)

    def may_lend(self, binding: Binding, cli_model: str, known_models: Collection[str]) -> bool:
        """Whether it can serve a request that is bound otherwise, the gateway putting system prompt and form in place.

        Not with a schema or tools of its own, which are the process's; and not where the CLI would ask the upstream
        whether it knows the model: that call has no place for either.
        """
        own = self.binding
        return (
            own is not None
            and self.account is not None
            and own.trust_domain == binding.trust_domain
            and own.schema is None
            and own.tools == binding.tools
            and (cli_model == self.model or cli_model in known_models)
        )

    def _prepare(self, plan: TurnPlan, cli_model: str) -> None:
        """Model and thinking, written with the message and not awaited."""
        if plan.thinking_tokens != self.thinking:
            self._control("set_max_thinking_tokens", max_thinking_tokens=plan.thinking_tokens)
            self.thinking = plan.thinking_tokens
        if cli_model != self.model:
            self.model = cli_model
            self._must_succeed[self._control("set_model", model=cli_model)] = (Code.MODEL_NOT_FOUND, "model")

    def _user_line(self, content: Content, *, query: bool = True) -> bytes:
        if self._can.composed:
            return user_line(content, query=query, uuid=self.message)
        return user_line(without_commands(content), query=query, composed=False, uuid=self.message)

    async def _replay(self, plan: TurnPlan, reader: TurnReader, watch: Watch) -> None:
        """Earlier exchanges, one by one: without waiting for each the order upstream would be wrong."""
        for content, answer in plan.history:
            self._write(self._user_line(content, query=False))
            async with watch:
                await self._history_step(reader)
            self._write(assistant_line(answer, plan.model if plan.tools else None))

    async def _offer(self, reader: TurnReader, watch: Watch) -> None:
        """Waits until the CLI has been told of the tools: what it is asked before that it would answer without them."""
        if not self._can.takes_tools:
            reader.fail(refused_tools("this Claude Code has no place for them"))
        while not self._listed and not reader.interrupt:
            async with watch:
                await self._messages()
            if self._refused is not None:
                reader.fail(self._refused)

    async def _history_step(self, reader: TurnReader) -> None:
        while True:
            messages = await self._messages()
            if self._refused is not None:
                reader.fail(self._refused)
            if any(map(is_result, messages)):
                return

    def _interrupt(self, reason: str, watch: Watch | None = None) -> None:
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
        return replace(outcome, usage=usage, failure=failure)

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

    async def kill_now(self) -> None:
        """Ends it at once, without asking: nobody waits for its answer, and nobody uses it again."""
        self.ending = True
        if self.account is not None:
            self.account.close()
        if self.process is not None:
            self.process.kill(signal.SIGKILL)
            await self.process.wait_gone(STOP_STEP_S)
            self.process.bury()

    async def stop(self) -> None:
        """The stop ladder: interrupt, end of input, SIGINT, SIGTERM, SIGKILL; then whatever is left of its group.

        Whoever reads the turn under way, if any, reads on and sees it end.
        """
        self.ending = True
        process = self.process
        if process is not None and self._turn_open and not process.gone:
            self._interrupt("the worker is being stopped")
        if self.account is not None:
            self.account.close()
        if process is None:
            return
        process.close_stdin()  # an idle process ends at that; a turn under way ends first
        if not await process.wait_gone(STOP_STEP_S):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                process.kill(number)
                if await process.wait_gone(STOP_STEP_S):
                    break
        process.bury()


def refused_tools(why: str) -> Failure:
    message = f"`tools` is not supported on the text lane: {why}."
    return Failure(code=Code.UNSUPPORTED_PARAMETER, message=message, param="tools")


def _names_the_form(failure: Failure) -> bool:
    """Whether the upstream refuses ``output_config.format`` itself: it names it, or structured outputs."""
    return failure.code is Code.UPSTREAM_INVALID_REQUEST and "output" in failure.message.lower()


_TOLD_BETTER_BY_THE_GATEWAY: Final = UPSTREAM_SAID_NO | {Code.MODEL_NOT_FOUND}
