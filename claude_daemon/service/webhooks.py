"""Webhooks: the ends of tasks, told to their receivers, each at least once.

A delivery is due from the commit that settled its task until a receiver's 2xx is committed; only then is it over. What
a crash cuts short in between is sent again, under the same id. So nothing is kept here that is needed: a loop that is
cancelled at any point and another one begun goes on where the store says.

A receiver that fails is asked again, later and later, over about three days.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from pathlib import PurePath
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from claude_daemon.core.retry import Backoff
from claude_daemon.ports.engine import Clock
from claude_daemon.ports.store import StoreUnavailable, WebhookDelivery, Webhooks
from claude_daemon.ports.webhook import WebhookAnswer, WebhookSender
from claude_daemon.service.hint import Hint

MAX_SENDING: Final = 16
"""At once: one that hangs takes ``webhooks.timeout_s``, so with the default 16 receivers that hang still leave three
deliveries a second; and a burst of ends costs no more than 16 connections."""

BACKOFF: Final = Backoff(first_seconds=5, limit_seconds=6 * 3600)

MAX_ATTEMPTS: Final = 28
"""Three quarters of each ceiling on average: 13 delays until it is reached are 8.5 h, 14 more of 4.5 h make three days,
a weekend with the receiver down."""

POLL_S: Final = 60.0
"""How far one look reaches. Hints and due times make it quick; looking again makes it right (a clock that was set)."""

_ASKING_FOR_TIME: Final = frozenset({429, 503})
_STORE_BACKOFF: Final = Backoff(first_seconds=1, limit_seconds=30)
_GONE: Final = WebhookAnswer(reason="its task is gone")

Body = Callable[[WebhookDelivery], Awaitable[bytes | None]]
"""What is sent of a task whose end an older version has kept without it; None when it is gone. Raises
StoreUnavailable."""

Told = Callable[[str, dict[str, Any]], None]
"""A line for the log: its name and its fields."""

T = TypeVar("T")


class WebhookLoop:
    """Sends what is due. ``now`` is seconds since the epoch, ``random`` uniform in [0, 1)."""

    def __init__(
        self,
        store: Webhooks,
        sender: WebhookSender,
        body: Body,
        *,
        now: Clock,
        random: Callable[[], float],
        told: Told = lambda name, fields: None,
    ) -> None:
        self._store = store
        self._sender = sender
        self._body = body
        self._now = now
        self._random = random
        self._told = told
        self._sending: set[str] = set()
        self._woken = False
        self._hint = Hint()

    def wake(self) -> None:
        """Something may be due: a task with a webhook was settled, the store is back."""
        self._woken = True
        self._hint.give()

    async def run(self) -> None:
        """Runs until it is cancelled; deliveries under way are cut then, and due again at the next start."""
        self._sending.clear()
        async with asyncio.TaskGroup() as group:
            while True:
                self._woken = False
                wait_seconds = await self._start_due(group)
                if not self._woken:
                    await self._hint.wait(wait_seconds)

    async def _start_due(self, group: asyncio.TaskGroup) -> float:
        """Starts what is due, as far as there is room; how long nothing more needs doing, unless woken before."""
        # What ends while the store is read may still be among what was read; its end has us look again.
        busy = frozenset(self._sending)
        soon = await self._insist(lambda: self._store.due(self._now() + POLL_S, MAX_SENDING + 1))
        now = self._now()
        for delivery in soon:
            if delivery.id in busy:
                continue
            if delivery.due_at > now:
                return delivery.due_at - now
            if len(self._sending) == MAX_SENDING:
                break  # the end of any of them wakes us
            self._sending.add(delivery.id)
            group.create_task(self._deliver(delivery))
        return POLL_S

    async def _deliver(self, delivery: WebhookDelivery) -> None:
        """One attempt, until the store knows what became of it."""
        try:
            answer = await self._attempt(delivery)
            await self._record(delivery, answer)
        finally:
            self._sending.discard(delivery.id)
            self.wake()

    async def _attempt(self, delivery: WebhookDelivery) -> WebhookAnswer:
        try:
            body = delivery.body or await self._insist(lambda: self._body(delivery))
            return _GONE if body is None else await self._sender.send(delivery.id, delivery.url, body)
        except Exception as error:  # the boundary of an attempt
            return WebhookAnswer(reason=f"internal error: {_place(error)}")

    async def _record(self, delivery: WebhookDelivery, answer: WebhookAnswer) -> None:
        failures, now = delivery.attempts + 1, self._now()
        if answer.delivered:
            await self._insist(lambda: self._store.delivered(delivery.id, now))
            self._tell("webhook.delivered", delivery, answer)
        elif answer is _GONE or answer.gone or failures >= MAX_ATTEMPTS:
            await self._insist(lambda: self._store.give_up(delivery.id, now, str(answer)))
            self._tell("webhook.given_up", delivery, answer)
        else:
            seconds = wait_seconds(answer, failures, self._random())
            await self._insist(lambda: self._store.postpone(delivery.id, now + seconds, str(answer)))
            self._tell("webhook.failed", delivery, answer, again_in_seconds=round(seconds, 1))

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Asks the store until it is there; a wake has it asked at once."""
        failures = 0
        while True:
            try:
                return await call()
            except StoreUnavailable:
                failures += 1
            await self._hint.wait(_STORE_BACKOFF.delay(failures, self._random()))

    def _tell(self, name: str, delivery: WebhookDelivery, answer: WebhookAnswer, **more: Any) -> None:
        """Of the URL its host alone: paths and queries hold tokens."""
        became = {"reason": answer.reason} if answer.status is None else {"status": answer.status}
        fields = {
            "webhook_id": delivery.id,
            "task_id": delivery.task_id,
            "host": _host(delivery.url),
            "attempt": delivery.attempts + 1,
            **became,
            **more,
        }
        self._told(name, fields)


def wait_seconds(answer: WebhookAnswer, failures: int, random: float) -> float:
    """How long to wait after the n-th failure: as a receiver asks that needs time, but no less than our own backoff
    (it would spend the attempts) and no more than its limit."""
    asked = answer.retry_after_seconds if answer.status in _ASKING_FOR_TIME else None
    return max(BACKOFF.delay(failures, random), min(asked or 0.0, BACKOFF.limit_seconds))


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _place(error: Exception) -> str:
    """What broke and where, without the words of the exception: it may quote what it choked on."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {PurePath(frame.filename).name}:{frame.lineno}"
