"""``python -m tests.bench.edge LOG``: our own edge with a store that keeps nothing, and the simplest thing beside it.

The same server, gate, routes, desk, dispatcher, tails and fan-out as in the daemon, on uvloop and with its logs: what
differs between this and a daemon is the store. For the fan-out it has a producer, and ``/plain``: aiohttp's WebSocket
and its ``send_json``, one follower after the other. Orders are :class:`Produce`; hello is the URL and a key.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import orjson
import uvloop
from aiohttp import web

from claude_daemon import assembly, journal
from claude_daemon.api import chat, ws
from claude_daemon.api.app import application
from claude_daemon.api.fanout import Cursor, Fanout
from claude_daemon.api.middleware import Gate
from claude_daemon.api.server import HttpServer
from claude_daemon.api.tasks import TaskRoutes
from claude_daemon.api.ws import StreamRoutes
from claude_daemon.config import Settings
from claude_daemon.core.errors import Failure
from claude_daemon.core.event import MESSAGE_EVENT, Emission, Event
from claude_daemon.core.key import Key, digest, new_secret
from claude_daemon.core.lifecycle import DaemonState
from claude_daemon.core.room import Room
from claude_daemon.core.task import Kind, Lane, State, Task, TaskSpec
from claude_daemon.durable import Durable
from claude_daemon.engine.session import SessionLane
from claude_daemon.ports import EventPage, Schemas, Store, StoredEvent, StoreStatus, Submission
from claude_daemon.service.admit import Admission
from claude_daemon.service.health import Health
from claude_daemon.service.keys import KeyDesk
from claude_daemon.service.tail import Tail
from claude_daemon.telemetry.logging import configure
from tests.bench.child import answer, more_files
from tests.service.doubles import FakeHomes

JOINED = 10
"""Events that are there at once whenever the producer is let go on: what a fast model says within a coalescing pass."""
_UNREAD_BYTES = 64 * 1024
_LOOK_AGAIN_S = 0.001  # a transport tells nobody that it has room again
_DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " another"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Produce:
    """Events for all followers of a task, or of ``/plain`` where ``task`` is None, for so many seconds.

    ``per_s`` None floods: :data:`JOINED` more as soon as all of those before are written and no follower has more than
    64 KiB unread.
    """

    task: str | None
    seconds: float
    per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """``last``: the last event's number. ``passes``: in how many pieces they were written; ``bytes``: to each follower.

    ``cpu_s``: of this whole process.
    """

    events: int
    last: int
    passes: int
    bytes: int
    seconds: float
    cpu_s: float


Told = tuple[int, int]
"""The number of the last event that was told, and how many bytes each follower was sent."""


class _Nothing:
    """As much of a store as submissions, subscriptions and a producer's tail come to."""

    async def enqueue(self, submissions: Sequence[Submission], *_: object) -> Sequence[Task | Failure]:
        return [submission.task for submission in submissions]

    async def get(self, task_id: str) -> Task:
        spec = TaskSpec(
            kind=Kind.TASK,
            lane=Lane.TEXT,
            request={"model": "bench", "messages": []},
            key_id="local",
            trust_domain="default",
            request_id="req_bench",
        )
        return Task(id=task_id, spec=spec, state=State.RUNNING, attempt=1, fence=1, created_at=time.time())

    async def events(self, task_id: str, *_: object) -> EventPage:
        return EventPage(terminal=False, events=[], complete=True)

    def append(self, task_id: str, fence: int, events: Sequence[StoredEvent], told: Callable[[bool], None]) -> None:
        asyncio.get_running_loop().call_soon(told, True)

    def status(self) -> StoreStatus:
        return StoreStatus(error=None, backlog=0)


class _NoRoom:
    """An engine that has no place: whatever is queued stays queued."""

    lane = Lane.TEXT
    room = Room(0)

    def unsupported(self, spec: TaskSpec) -> None:
        return None

    def approximated(self, spec: TaskSpec) -> Sequence[str]:
        return ()

    def lease(self, spec: TaskSpec) -> None:
        return None

    def unavailable(self) -> None:
        return None

    def health(self) -> dict[str, Any]:
        return {}


class _Plain:
    """``/plain``: what one would write without a fan-out."""

    def __init__(self) -> None:
        self._followers: list[web.WebSocketResponse] = []
        self._seq = 0

    def register(self, router: web.UrlDispatcher) -> None:
        router.add_get("/plain", self._follow)

    async def _follow(self, request: web.Request) -> web.WebSocketResponse:
        follower = web.WebSocketResponse()
        await follower.prepare(request)
        self._followers.append(follower)
        try:
            async for _ in follower:
                pass
        finally:
            self._followers.remove(follower)
        return follower

    async def tell(self, count: int) -> Told:
        """So many events, one by one, each to one follower after the other."""
        told = [await self._tell() for _ in range(count)]
        return told[-1][0], sum(size for _, size in told)

    async def _tell(self) -> Told:
        self._seq += 1
        told = {"op": "event", "task": "task_plain", "seq": self._seq, "type": "text.delta"}
        told |= {"at": round(time.time(), 3), "data": {"text": " another"}}
        for follower in self._followers:
            await follower.send_json(told)
        await asyncio.sleep(0)
        size = len(json.dumps(told))
        return self._seq, size + (2 if size < 126 else 4)


class _Probe:
    """A follower within the process: whenever it was served, so was everybody."""

    buffered = 0

    def __init__(self) -> None:
        self.passes = 0
        self.bytes = 0
        self._served = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.passes += 1
        self.bytes += len(data)
        self._served.set()

    async def write_piece(self, events: Sequence[Event]) -> None:
        raise AssertionError("nothing is stored")

    async def served(self) -> None:
        await self._served.wait()
        self._served.clear()


class _Source:
    """The producer of one task, in its attempt's place."""

    def __init__(self, tail: Tail) -> None:
        self.tail = tail
        self.probe = _Probe()
        tail.begin(1)

    async def tell(self, count: int) -> Told:
        """So many events, one by one as lines come in; returns when they are written to everybody."""
        before = self.probe.bytes
        for _ in range(count):
            self.tail.append([Emission(MESSAGE_EVENT, _DELTA)])
        await self.tail.room()
        await self.probe.served()
        return self.tail.last_seq, self.probe.bytes - before


class Edge:
    """Construct it in its loop."""

    def __init__(self) -> None:
        self.secret = new_secret(secrets.token_bytes)
        settings = Settings.model_validate({"queue": {"max_queued": 10**7, "max_queued_per_key": 10**7}})
        store, schemas = cast(Store, _Nothing()), cast(Schemas, None)  # no submission here has a schema
        self.durable = Durable(settings, store, [_NoRoom()], cast(SessionLane, FakeHomes()), schemas, audit_key=b"")
        admission = Admission(
            self.durable.dispatcher,
            [_NoRoom()],
            state=lambda: DaemonState.READY,
            store_error=lambda: store.status().error,
            models=settings.engine.models,
            default_model=settings.engine.default_model,
        )
        health = Health(version="bench", monotonic=time.monotonic)
        local = Key(id="local", name="local", digest=digest(self.secret), role="standard", trust_domain="default")
        self._keys = KeyDesk(
            store,
            local,
            shared=False,
            now=time.time,
            monotonic=time.monotonic,
            ids=assembly.ids,
            randbytes=secrets.token_bytes,
        )
        self.durable.serve(admission, health, draining=lambda: False, keys=self._keys)
        self.durable.dispatcher.hold()  # as a daemon whose queue is paused
        self._plain = _Plain()
        self._sources: dict[str, _Source] = {}
        self._server = self._edge(settings, admission, schemas)

    def _edge(self, settings: Settings, admission: Admission, schemas: Schemas) -> HttpServer:
        gate = Gate(
            identify=self._keys.identify,
            check_route=self._keys.check_route,
            allowed_hosts=settings.http.accepted_hosts,
            allowed_origins=settings.http.allowed_origins,
        )
        body = chat.BodyLimits(max_bytes=settings.http.max_body_bytes, timeout_s=settings.http.body_timeout_s)
        chats = chat.Chats(admission, self.durable.dispatcher, self.durable.sessions, body, self._keys)
        desk = self.durable.desk
        self.fanout = Fanout(self.durable.follow, lambda task_id: task_id in self._sources)
        watched = self._keys.watches.watched
        streams = StreamRoutes(
            desk, self.fanout, schemas, max_message_bytes=settings.http.max_body_bytes, watched=watched
        )
        tasks = TaskRoutes(desk, chats, self.fanout, schemas, watched=watched)
        return HttpServer(
            application(gate.middleware(), tasks, streams, self._plain),
            limits=assembly.limits(settings),
            ids=assembly.ids,
            on_access=journal.access,
            on_error=journal.unhandled,
        )

    async def run(self) -> None:
        """Serves, and does what it is told; until its parent has ended."""
        listener = socket.create_server(("127.0.0.1", 0))
        async with asyncio.TaskGroup() as group:
            group.create_task(self.durable.dispatcher.run())
            await self._server.listen([listener])
            answer({"url": f"http://127.0.0.1:{listener.getsockname()[1]}", "key": self.secret})
            while line := await asyncio.to_thread(sys.stdin.buffer.readline):
                order = orjson.loads(line)
                if "open" in order:
                    answer(self._open(group, order["open"]))
                else:
                    answer(asdict(await self._produce(Produce(**order))))
            sys.exit(0)

    def _open(self, group: asyncio.TaskGroup, task_id: str) -> str:
        """A task that may be followed from now on."""
        source = self._sources[task_id] = _Source(self.durable.tails.hold(task_id))
        cursor = Cursor(source.tail.last_seq)
        group.create_task(self.fanout.serve(task_id, cursor, source.probe, ws.frame))
        return task_id

    async def _produce(self, order: Produce) -> Produced:
        tell = self._plain.tell if order.task is None else self._sources[order.task].tell
        count = JOINED if order.per_s is None else 1
        began, cpu = time.perf_counter(), time.process_time()
        last, passes, sent = 0, 0, 0
        due = began
        while time.perf_counter() - began < order.seconds:
            last, size = await tell(count)
            passes, sent = passes + 1, sent + size
            if order.per_s is None:
                await self._read_by_all(_UNREAD_BYTES)
            else:
                due += 1 / order.per_s
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await self._read_by_all(0)
        return Produced(
            events=passes * count,
            last=last,
            passes=passes,
            bytes=sent,
            seconds=time.perf_counter() - began,
            cpu_s=time.process_time() - cpu,
        )

    async def _read_by_all(self, at_most: int) -> None:
        """Waits until no follower has more than this still to read, beside what its kernel holds."""
        while any(self._unread(connection) > at_most for connection in self._server.connections):
            await asyncio.sleep(_LOOK_AGAIN_S)

    @staticmethod
    def _unread(connection: web.RequestHandler) -> int:
        return connection.transport.get_write_buffer_size() if connection.transport is not None else 0


async def _main() -> None:
    await Edge().run()


def main() -> None:
    more_files()
    log = Path(sys.argv[1])
    with (log / "stderr.log").open("w") as stderr:
        handle = configure(Settings().log, stream=stderr, path=log / "daemon.log")
        try:
            uvloop.run(_main())
        finally:
            handle.close()


if __name__ == "__main__":
    main()
