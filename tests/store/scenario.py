"""A life that meets every verb, one after the other, always the same; and as a program that is killed in it.

Run as ``python -m tests.store.scenario PATH VERB MOMENT COUNT``: says "done N" after the N-th step, and kills itself
before or after the commit in which a verb takes part for the COUNT-th time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from claude_daemon.core.event import first_seq
from claude_daemon.core.session import SessionTurn
from claude_daemon.core.task import Kind, Lane, State, Task, Usage
from claude_daemon.ports import Batch, Idempotency, SessionRecord
from claude_daemon.store import SqliteStore
from tests.store.samples import (
    CANCELLED,
    FAILED,
    LEASE_UNTIL,
    LIMITS,
    PATIENCE_S,
    SUCCEEDED,
    append,
    audit,
    entry,
    event,
    key,
    requeue,
    reservation,
    settlement,
    submission,
    task,
)

HOOK = "https://example.org/"


async def life(store: SqliteStore, unwaited: threading.Semaphore) -> AsyncIterator[str]:
    """The verb of each step, once it is durable. ``unwaited`` is released after each commit of a chat."""
    await store.join("node_1", 1.0)
    yield "join"
    batch = Batch(id="batch_1", key_id="local", created_at=1.0, size=3)
    asked = [task(f"task_{n}", batch_id="batch_1", webhook=HOOK) for n in range(3)]
    await store.enqueue([submission(one, Idempotency(key=one.id, digest=b"d")) for one in asked], LIMITS, batch)
    yield "enqueue"
    first = await claimed(store, "task_0")
    yield "claim"
    await store.renew("node_1", ["task_0"], LEASE_UNTIL + 1)
    yield "renew"
    await append(store, "task_0", 1, [event(first_seq(1) + n) for n in range(3)])
    yield "append"
    store.spent("task_0", 1, Usage(input_tokens=3, output_tokens=1, model_calls=1))
    assert await asyncio.to_thread(unwaited.acquire, timeout=PATIENCE_S)
    yield "spent"
    await store.set_effects("task_0", 1)
    yield "set_effects"
    await store.request_cancel("task_0", 2.0, audit("task.cancel", first))
    yield "request_cancel"
    last = replace(first, last_seq=first_seq(1) + 2)
    await store.settle(settlement(last, CANCELLED, webhook_id="wh_0"))
    yield "settle"
    await store.retry("task_0", event(first_seq(2)), LIMITS, audit("task.retry", first))
    yield "retry"
    second = await claimed(store, "task_1")
    yield "claim"
    await store.requeue(requeue(second, audit=audit("task.requeued", second)))
    yield "requeue"
    for n in (1, 2):
        queued = await store.get(f"task_{n}")
        assert queued is not None
        await store.settle(settlement(queued, FAILED, new_fence=queued.fence + 1, ledger=None, webhook_id=f"wh_{n}"))
        yield "settle"
    await store.postpone("wh_0", 9000.0, "refused")
    yield "postpone"
    await store.delivered("wh_1", 9001.0)
    yield "delivered"
    await store.give_up("wh_2", 9002.0, "gone")
    yield "give_up"
    said = replace(task("chat_1", kind=Kind.CHAT), state=State.SUCCEEDED, outcome=SUCCEEDED, finished_at=9e9)
    store.record_chat(said, entry(said), audit("chat.ended", said))
    assert await asyncio.to_thread(unwaited.acquire, timeout=PATIENCE_S)
    yield "record_chat"
    store.reserve(reservation(task("chat_2", kind=Kind.CHAT)))
    assert await asyncio.to_thread(unwaited.acquire, timeout=PATIENCE_S)
    yield "reserve"
    await store.charge_left_behind("1970-01-02", 9e4)
    yield "charge_left_behind"
    await store.record(audit("config.changed"))
    yield "record"
    assert await store.prune_audit(1.75, 2.0, 100)
    yield "prune_audit"
    await store.create_key(key(), audit("key.created"))
    yield "create_key"
    await store.rotate_key("key_1", b"new", 9e9, audit("key.rotated"))
    yield "rotate_key"
    await store.suspend_key("key_1", 3.0, audit("key.suspended"))
    yield "suspend_key"
    store.key_used("key_1", 4.0)
    assert await asyncio.to_thread(unwaited.acquire, timeout=PATIENCE_S)
    yield "key_used"
    turn = task("task_3", lane=Lane.SESSION, session=SessionTurn(id="sess_1", transcript="t", message="m"))
    made = SessionRecord(
        id="sess_1", key_id="local", trust_domain="default", transcript="t", created_at=1.0, used_at=1.0
    )
    await store.enqueue([replace(submission(turn), session=made)], LIMITS)
    yield "enqueue"
    await store.settle(settlement(replace(turn, last_seq=1), CANCELLED, new_fence=1, ledger=None))
    yield "settle"
    hers = task("task_4", key_id="key_1", webhook=HOOK)
    await store.enqueue([submission(hers)], LIMITS)
    yield "enqueue"
    await store.revoke_key("key_1", 5.0, audit("key.revoked"))
    yield "revoke_key"
    await store.delete_session("sess_1", audit("session.deleted"))
    yield "delete_session"
    await store.pause(True)
    yield "pause"
    await store.purge(1e6, 100)
    yield "purge"
    assert await store.check()
    yield "check"
    await store.backed_up(1e6)
    yield "backed_up"


async def claimed(store: SqliteStore, task_id: str) -> Task:
    task = await store.claim(task_id, "node_1", LEASE_UNTIL, 2000.0)
    assert task is not None
    return task


class Point:
    """The moment at which the process ends; with ``count`` 0 none."""

    def __init__(self, verb: str = "", moment: str = "", count: int = 0) -> None:
        self.unwaited = threading.Semaphore(0)
        self._at = (verb, moment)
        self._left = count

    def __call__(self, verb: str, moment: str) -> None:
        if (verb, moment) == self._at:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        if verb in ("record_chat", "reserve", "spent", "key_used") and moment == "after":
            self.unwaited.release()


async def main(path: str, verb: str, moment: str, count: str) -> None:
    point = Point(verb, moment, int(count))
    store = SqliteStore.open(Path(path), observer=point)
    number = 0
    async for _ in life(store, point.unwaited):
        number += 1
        print("done", number, flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
