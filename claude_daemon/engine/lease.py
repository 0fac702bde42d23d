"""A worker held for one turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, cast

from claude_daemon.core.event import Emission
from claude_daemon.core.task import Usage
from claude_daemon.core.worker import Start
from claude_daemon.engine.deadline import TurnLimits
from claude_daemon.engine.plan import TurnPlan
from claude_daemon.engine.worker import Worker
from claude_daemon.ports import Ended, Spending


class TextLease:
    """See :class:`~claude_daemon.ports.MeteredLease`. ``given_back`` is called exactly once."""

    def __init__(
        self,
        worker: Worker,
        turn_plan: TurnPlan,
        cli_model: str,
        limits: TurnLimits,
        *,
        start: Start,
        request_id: str,
        given_back: Callable[[Worker], None],
    ) -> None:
        self.spending: Spending | None = None
        self._worker = worker
        self._plan = turn_plan
        self._cli_model = cli_model
        self._limits = limits
        self._start = start
        self._request_id = request_id
        self._given_back = given_back
        self._released = False
        self._began = False

    @property
    def start(self) -> str:
        return self._start.value

    @property
    def worker_id(self) -> str | None:
        return self._worker.id

    @property
    def usage(self) -> Usage:
        account = self._worker.account
        return account.usage if account is not None and self._began else Usage()

    async def run(self) -> AsyncIterator[Sequence[Emission | Ended]]:
        self._began = True
        turn = self._worker.turn(self._plan, self._cli_model, self._limits, self._request_id, self.spending)
        try:
            async with aclosing(cast(Any, turn)) as batches:
                async for batch in batches:
                    if isinstance(batch[-1], Ended):
                        self.release()  # before the caller acts on the end, so that the next request finds the place
                    yield batch
        finally:
            self.release()

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._given_back(self._worker)
