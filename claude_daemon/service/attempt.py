"""The life of an attempt: claimed, told as it goes, judged, and over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, cast

import orjson

from claude_daemon.core.event import MESSAGE, MESSAGE_EVENT, TASK_STARTED, TEXT_RESET, TOOL_DENIED, Emission
from claude_daemon.core.task import State
from claude_daemon.ports import (
    Answer,
    Clock,
    Ended,
    Lease,
    Question,
    Schemas,
    StoreUnavailable,
    is_gated,
    is_metered,
)
from claude_daemon.service.approvals import Approvals
from claude_daemon.service.book import Book
from claude_daemon.service.judge import Judge
from claude_daemon.service.run import LOST, STALLED, Run, cut_short, ended_with

Parts = Callable[[Emission], Sequence[Emission]]
"""What an engine said, in pieces that are small enough to be told whole."""


class Attempts:
    """Makes attempts. ``stall_s``: how long one waits for its events to become durable before it fails. ``told`` hears
    how many events were told."""

    def __init__(
        self,
        schemas: Schemas,
        book: Book | None,
        approvals: Approvals,
        *,
        monotonic: Clock,
        parts: Parts,
        stall_s: float,
        told: Callable[[int], None] = lambda events: None,
    ) -> None:
        self._schemas = schemas
        self._book = book
        self._approvals = approvals
        self._monotonic = monotonic
        self._parts = parts
        self.stall_s = stall_s
        self._told = told

    async def make(self, run: Run, lease: Lease) -> Ended | None:
        """How it ended; None where the task is not ours to run. Raises StoreUnavailable where nobody can tell."""
        if run.durable:
            assert self._book is not None
            if not await self._book.claim(run):
                return None
            if run.ending is not None:
                return Ended(outcome=cut_short(run))
        else:
            run.tail.begin(run.task.attempt)
        started = {
            "lane": run.lane,
            "start": lease.start,
            "worker": lease.worker_id,
            "attempt": run.task.attempt,
        }
        run.tail.append([Emission(TASK_STARTED, started)])
        if run.durable and run.task.fence > 1:  # whatever an earlier attempt has told
            run.tail.append([Emission(TEXT_RESET, {})])
        return await self._answer(run, lease)

    async def _answer(self, run: Run, lease: Lease) -> Ended:
        """Runs the lease. With a schema, the end of the answer is told only when the answer has been judged."""
        schema = run.task.spec.output_schema
        # an agent's answer is not its text: what it says on its way is told as it comes
        judge = Judge(self._schemas, schema) if schema is not None and run.task.spec.agent is None else None
        if is_gated(lease):
            lease.gate = _ToolGate(self, run, self._book) if self._book is not None else None
            lease.ask = partial(self._ask, run)
        if self._book is not None and is_metered(lease):
            lease.spending = partial(self._book.may_call, run)
        try:
            return await self._read(run, lease, judge)
        finally:
            self._approvals.forget(run.task.id)

    async def _read(self, run: Run, lease: Lease, judge: Judge | None) -> Ended:
        # closed at once when we are cancelled, so that the turn is interrupted now and not when memory is collected
        async with aclosing(cast(Any, lease.run())) as batches:
            async for batch in batches:
                ended = batch[-1] if isinstance(batch[-1], Ended) else None
                emissions = [item for item in batch if isinstance(item, Emission)]
                if judge is not None:
                    emissions = judge.hold(emissions)
                if run.durable and ended is None:
                    assert self._book is not None
                    self._book.spent(run, lease.usage)
                stopped = await self._tell(run, emissions)
                if stopped is not None:
                    return stopped
                if ended is not None:
                    if judge is None:
                        return await self._form_checked(run, ended)
                    outcome, held = await judge.judge(ended.outcome)
                    return await self._tell(run, held) or replace(ended, outcome=outcome)
        raise AssertionError("an engine's run must end in Ended")

    async def _form_checked(self, run: Run, ended: Ended) -> Ended:
        """An agent's structured answer must be what was asked for."""
        schema, outcome = run.task.spec.output_schema, ended.outcome
        if schema is None or outcome.state is not State.SUCCEEDED:
            return ended
        failure = await self._schemas.validate(schema, orjson.dumps(outcome.structured).decode())
        if failure is None:
            return ended
        return replace(ended, outcome=replace(outcome, state=State.FAILED, failure=failure, structured=None))

    def _ask(self, run: Run, question: Question, answer: Callable[[Answer], None]) -> Callable[[], None]:
        """What is asked is told among the task's events, wherever its answer comes from."""

        def tell(emission: Emission) -> None:
            if not run.tail.lost:
                run.tail.append(self._parts(emission))

        return self._approvals.ask(run.task.id, question, tell, answer)

    async def _tell(self, run: Run, emissions: Sequence[Emission]) -> Ended | None:
        """Tells what was said, and waits while nobody can take more; the end, where that ends the attempt."""
        if not emissions:
            return None
        self._told(len(emissions))
        if run.first_delta_at is None and any(e.type in (MESSAGE_EVENT, MESSAGE) for e in emissions):
            run.first_delta_at = self._monotonic()
        if not run.durable:
            run.tail.append(emissions)
            await run.tail.room()
            return None
        for emission in emissions:
            run.heard(emission)
        run.tail.append([part for emission in emissions for part in self._parts(emission)])
        try:
            async with asyncio.timeout(self.stall_s):
                await run.tail.room()
                for emission in emissions:
                    if emission.type == TOOL_DENIED and self._book is not None:
                        await self._book.tool_denied(run, emission.data)
        except (TimeoutError, StoreUnavailable):
            return Ended(outcome=ended_with(STALLED))
        return Ended(outcome=ended_with(LOST)) if run.tail.lost else None


class _ToolGate:
    """Implements :class:`~claude_daemon.ports.Gate` for one attempt: before a tool runs, what it may change, and that
    it was called, is durable."""

    def __init__(self, attempts: Attempts, run: Run, book: Book) -> None:
        self._attempts = attempts
        self._run = run
        self._book = book

    async def called(self, tool: str, given: Mapping[str, Any], *, asked: bool) -> str | None:
        return await self._written(self._book.tool_called(self._run, tool, given, asked=asked))

    async def allowed(self, tool: str) -> str | None:
        return await self._written(self._book.before_tool(self._run, tool))

    async def _written(self, writing: Awaitable[str | None]) -> str | None:
        try:
            async with asyncio.timeout(self._attempts.stall_s):
                return await writing
        except (TimeoutError, StoreUnavailable):
            return "nothing can be stored now, so nothing may be changed"
