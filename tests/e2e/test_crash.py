"""kill -9 under load: at every commit of every verb of the store, before and after it, and at random moments.

Whatever the moment: every acknowledged task ends exactly once, one whose cancellation was acknowledged ends cancelled,
a follower that comes back with its cursor sees everything that was kept, nothing twice and nothing out of order, the
ledger's sums are those of what was said, and no process of any life is left. A failure prints the point and the seed;
``CRASH_SEED`` runs the same random moments again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from claude_daemon.offline import OfflineModel
from claude_daemon.service.budget import WRITTEN_AFTER_S
from claude_daemon.store import VERBS
from tests.support import DaemonProcess, alive, share_probe

pytestmark = pytest.mark.crash

PATIENCE_S = 60.0
TASKS = 8
CANCELLED = 3
STEPS = (
    "chat",
    "tool",
    "talk",
    "pause",
    "resume",
    "submit",
    "worker",
    "cancel",
    "retry",
    "purge",
    "backup",
    "key",
    "rotate",
    "use",
    "suspend",
    "unsuspend",
    "revoke",
    "forget",
)
"""What disturbs the load, in this order: ``talk`` begins a session that ``forget`` deletes."""
TERMINAL = ("task.succeeded", "task.failed", "task.cancelled")
SETTINGS = {"engine.workers": 2, "engine.spares": 0, "queue.max_attempts": 50, "webhooks.allow_private": True}
CRASHING = (sys.executable, str(Path(__file__).with_name("crashing.py")))
# What the offline model says to each, in tokens; None: it refuses.
PROMPTS: Mapping[str, int | None] = {
    "[[tokens=30]] [[pace=5ms]]": 30,
    "[[error=400]]": None,
    "[[text=short]]": 1,
    "[[tokens=15]] [[pace=10ms]]": 15,
}
SEED = int(os.environ.get("CRASH_SEED", random.SystemRandom().randrange(1 << 30)))


class Service:
    """The daemon of one home, started again whenever it is gone. ``killed``: how often that was."""

    def __init__(
        self,
        home: Path,
        model: OfflineModel,
        environ: Mapping[str, str],
        first: Mapping[str, str] | None = None,
    ) -> None:
        """``first``: what only its first life, the one with a crash point, has in its environment."""
        self.first = first or {}
        self.home = home
        self.model = model
        self.environ = environ
        self.daemon: DaemonProcess | None = None
        self.up = asyncio.Event()
        self.killed = 0
        self.cancelled: list[str] = []
        """Tasks whose cancellation was acknowledged."""

    async def run(self, crash_at: str | None = None) -> None:
        """The first life may have a crash point; those after it have none."""
        while True:
            program: dict[str, Any] = {}
            environ = {**self.environ}
            if crash_at is not None and not self.killed:
                program = {"program": CRASHING}
                environ |= {**self.first, "CRASH_AT": crash_at.partition(",")[0]}
            self.daemon = DaemonProcess(self.home, self.model, SETTINGS, environ=environ, **program)
            try:
                await self.daemon.start()
            except RuntimeError:  # killed before it said where it serves
                await self.daemon.ended()
                self.killed += 1
                continue
            self.up.set()
            assert self.daemon.process is not None
            await self.daemon.process.wait()
            self.up.clear()
            await self.daemon.ended()
            self.killed += 1

    async def serving(self) -> DaemonProcess:
        await self.up.wait()
        assert self.daemon is not None
        return self.daemon


class Task:
    """One submission, insisted on, followed with its cursor across every crash."""

    def __init__(self, number: int, prompt: str, webhook: str) -> None:
        self.number = number
        self.tokens = PROMPTS[prompt]
        self.body = {"prompt": f"{prompt} number {number}", "webhook": webhook}
        self.id: str | None = None
        self.events: list[dict[str, Any]] = []

    @property
    def over(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] in TERMINAL

    async def run(self, service: Service) -> None:
        while not self.over:
            daemon = await service.serving()
            try:
                if self.id is None:
                    await self._submit(daemon)
                await self._follow(daemon)
            except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.01)  # the process is going: its end is seen in a moment

    async def _submit(self, daemon: DaemonProcess) -> None:
        headers = {"Idempotency-Key": f"task-{self.number}"}
        async with daemon.http.post("/v1/tasks", json=self.body, headers=headers) as response:
            if response.status not in (200, 202):
                await response.read()
                await asyncio.sleep(0.01)
                return
            self.id = (await response.json())["id"]

    async def _follow(self, daemon: DaemonProcess) -> None:
        if self.id is None:
            return
        after = self.events[-1]["seq"] if self.events else 0
        async with daemon.http.get(f"/v1/tasks/{self.id}/events?after={after}") as response:
            assert response.status == 200, f"acknowledged task {self.id} is gone: {response.status}"
            async for raw in response.content:
                if raw.startswith(b"data: "):
                    event = orjson.loads(raw.removeprefix(b"data: "))
                    if "seq" in event:
                        self.events.append(event)


async def load(service: Service, receiver: str) -> list[Task]:
    """Tasks that stream, fail, are cancelled, deliver webhooks, and chats between them, all at once."""
    prompts = list(PROMPTS)
    tasks = [Task(n, prompts[n % len(prompts)], receiver) for n in range(TASKS)]
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(task.run(service))
        group.create_task(_disturb(service))
        for number in range(CANCELLED):
            group.create_task(_cancel(service, number))
    return tasks


async def _cancel(service: Service, number: int) -> None:
    """Insists on a task that would take longer than anybody waits, and on its cancellation."""
    body = {"prompt": "[[tokens=60]] [[pace=1s]]"}
    path, headers = "/v1/tasks", {"Idempotency-Key": f"unwanted-{number}"}
    answer: dict[str, Any] = {}
    async with asyncio.timeout(PATIENCE_S):
        while True:
            daemon = await service.serving()
            try:
                async with daemon.http.post(path, json=body, headers=headers) as response:
                    answer = await response.json(content_type=None)
                    done = response.status in (200, 202)
            except (aiohttp.ClientError, OSError, ValueError):
                done = False
            if not done:
                await asyncio.sleep(0.01)
            elif path == "/v1/tasks":
                path = f"/v1/tasks/{answer['id']}/cancel"
            else:
                service.cancelled.append(answer["id"])
                return


async def _disturb(service: Service) -> None:
    """Chats, an agent, a session that is deleted, a pause and a resume, a purge, a backup, a key and what becomes
    of it, a cancelled task that is tried again: what the other verbs are for."""
    async with asyncio.timeout(PATIENCE_S):
        done: set[str] = set()
        extra: str | None = None
        talk: str | None = None
        secret = ""
        while len(done) < len(STEPS):
            step = next(step for step in STEPS if step not in done)
            daemon = await service.serving()
            try:
                if step == "chat":
                    await daemon.chat("[[text=chat]]", lane="direct")
                elif step in ("pause", "resume"):
                    await daemon.control(f"queue/{step}", "POST")
                elif step == "worker":
                    busy = [worker["pid"] for worker in await daemon.workers() if worker["state"] == "busy"]
                    if not busy:
                        raise ValueError("none is busy: a moment later")
                    os.kill(busy[0], signal.SIGKILL)
                elif step == "purge":
                    await daemon.control("tasks/purge", "POST", {"before": 1.0})
                elif step == "backup":
                    copy = service.home / f"copy-{time.monotonic_ns()}.db"
                    await daemon.control("backup", "POST", {"path": str(copy)})
                elif step == "key":  # a conflict, where the crash came after the commit
                    await daemon.control("keys", "POST", {"name": "extra", "budget_usd_day": 5.0})
                elif step == "rotate":
                    secret = (await daemon.control("keys/extra/rotate", "POST", {})).get("key", "")
                    if not secret:
                        raise ValueError("it was not taken: a moment later")
                elif step == "use":  # something is set aside for it, for it has a budget
                    await _use(daemon, secret)
                elif step in ("suspend", "unsuspend", "revoke"):
                    verb = "resume" if step == "unsuspend" else step
                    await daemon.control(f"keys/extra/{verb}", "POST", {})
                elif step == "tool":
                    prompt = '[[tool=Bash]] [[input={"command":"true"}]] [[tokens=1]]'
                    await daemon.control("tasks?detach=true", "POST", {"prompt": prompt, "tools": {"allow": ["Bash"]}})
                elif step == "talk":
                    body = {"prompt": "[[text=hi]]", "session": {}}
                    talk = (await daemon.control("tasks?detach=true", "POST", body)).get("session_id")
                    if talk is None:
                        raise ValueError("it was not taken: a moment later")
                elif step == "forget":
                    if (await daemon.control(f"sessions/{talk}", "DELETE")).get("code") == "conflict":
                        raise ValueError("its turn is not over: a moment later")
                elif step == "submit":
                    body = {"prompt": "[[tokens=20]] [[pace=20ms]]"}
                    extra = (await daemon.control("tasks?detach=true", "POST", body)).get("id")
                else:
                    await daemon.control(f"tasks/{extra}/{step}", "POST")
                done.add(step)
            except (aiohttp.ClientError, OSError, ValueError):
                await asyncio.sleep(0.01)


async def _use(daemon: DaemonProcess, secret: str) -> None:
    """A chat with this key, which lasts until what it sets aside is written. Raises ValueError where the daemon ended
    before its answer did."""
    prompt = f"[[text=used]] [[first={4 * WRITTEN_AFTER_S:g}s]]"
    body = {"model": "sonnet", "max_tokens": 9, "messages": [{"role": "user", "content": prompt}]}
    headers = {"Authorization": f"Bearer {secret}", "Claude-Daemon-Lane": "direct"}
    async with (
        aiohttp.ClientSession(daemon.url, headers=headers) as http,
        http.post("/v1/messages", json=body) as response,
    ):
        if response.status != 200:
            raise ValueError(f"{response.status}: a moment later")
        await response.read()


def check(service: Service, tasks: list[Task], deliveries: Mapping[str, int], point: str) -> None:
    """Looks into the database itself, once nothing is running any more."""
    database = service.home / ".claude-daemon" / "daemon.db"
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    for task in tasks:
        seqs = [event["seq"] for event in task.events]
        assert seqs == sorted(set(seqs)), f"{point}: task {task.number} saw an event twice or out of order"
        kept = connection.execute("SELECT seq, type FROM events WHERE task_id = ? ORDER BY seq", (task.id,)).fetchall()
        ends = [kind for _, kind in kept if kind in TERMINAL]
        assert len(ends) == 1, f"{point}: task {task.number} ended {len(ends)} times"
        assert kept[-1] == (task.events[-1]["seq"], task.events[-1]["type"]), point
        # what was told and not kept went with the process; what was kept was told to whoever followed
        missed = {seq for seq, _ in kept} - set(seqs)
        assert not missed, f"{point}: task {task.number} was not told {sorted(missed)}"
        assert deliveries.get(task.id or "", 0) >= 1, f"{point}: task {task.number} was not delivered"
        _check_ledger(connection, task, point)
    states = dict(connection.execute("SELECT state, count(*) FROM tasks GROUP BY state"))
    assert set(states) <= {"succeeded", "failed", "cancelled"}, f"{point}: {states}"
    for task_id in service.cancelled:
        ((state,),) = connection.execute("SELECT state FROM tasks WHERE id = ?", (task_id,)).fetchall()
        assert state == "cancelled", f"{point}: {task_id} was to be cancelled, and is {state}"
    _check_sums(connection, point)
    connection.close()


def _check_ledger(connection: sqlite3.Connection, task: Task, point: str) -> None:
    """One row for each attempt that told its own end, and the last one holds what was said."""
    (attempt, outcome) = connection.execute("SELECT attempt, outcome FROM tasks WHERE id = ?", (task.id,)).fetchone()
    rows = connection.execute(
        "SELECT attempt, input_tokens, output_tokens FROM ledger WHERE task_id = ? ORDER BY n", (task.id,)
    ).fetchall()
    attempts = [row[0] for row in rows]
    assert attempts == sorted(set(attempts)), f"{point}: task {task.number} was counted twice: {rows}"
    usage = orjson.loads(outcome)["usage"]
    assert rows[-1] == (attempt, usage["input_tokens"], usage["output_tokens"]), f"{point}: task {task.number}: {rows}"
    if task.tokens is not None:
        assert usage["output_tokens"] == task.tokens, f"{point}: task {task.number}: {usage}"
        assert sum(row[2] for row in rows) <= task.tokens * len(rows), f"{point}: task {task.number}: {rows}"


def _check_sums(connection: sqlite3.Connection, point: str) -> None:
    """No row of the ledger without an attempt that has ended, or a chat; of each chat, what it says it used. Of a chat
    that was under way when the daemon was killed there is only what was set aside for it."""
    strays = connection.execute(
        """
        SELECT task_id, attempt FROM ledger WHERE task_id NOT IN (SELECT id FROM tasks WHERE kind = 'chat')
        AND NOT (model_calls = 0 AND charged_micro_usd > 0 AND task_id NOT IN (SELECT id FROM tasks))
        EXCEPT SELECT task_id, attempt FROM attempts WHERE ended IS NOT NULL
        """
    ).fetchall()
    assert not strays, f"{point}: counted, and no attempt: {strays}"
    uncounted = connection.execute(
        """
        SELECT task_id, count(*) AS used FROM attempts WHERE usage IS NOT NULL GROUP BY task_id
        HAVING used > (SELECT count(*) FROM ledger WHERE ledger.task_id = attempts.task_id)
        """
    ).fetchall()
    assert not uncounted, f"{point}: used, and not counted: {uncounted}"
    ((said, counted),) = connection.execute(
        """
        SELECT (SELECT sum(json_extract(outcome, '$.usage.output_tokens')) FROM tasks WHERE kind = 'chat'),
               (SELECT sum(output_tokens) FROM ledger JOIN tasks ON id = task_id WHERE kind = 'chat')
        """
    ).fetchall()
    assert said == counted, f"{point}: chats said {said} tokens, {counted} are counted"


class Receiver:
    """Where webhooks go."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    async def __aenter__(self) -> Receiver:
        from aiohttp import web

        async def take(request: web.Request) -> web.Response:
            task = (await request.json())["data"]
            self.seen[task["id"]] = self.seen.get(task["id"], 0) + 1
            # one receiver is down at first, one wants to hear no more
            failing = {"failed": 410, "succeeded": 503 if len(self.seen) == 1 and self.seen[task["id"]] == 1 else 200}
            return web.Response(status=failing.get(task["state"], 200))

        app = web.Application()
        app.router.add_post("/", take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()


async def scene(
    tmp_path: Path, model: OfflineModel, warm: DaemonProcess, point: str, kill_after_s: float | None
) -> int:
    """One life under load that ends by kill -9, and what comes after; how often the daemon was killed.

    A load that is over before the moment comes is killed at rest.
    """
    share_probe(warm, tmp_path)
    service = Service(tmp_path, model, {"CLAUDE_DAEMON_WEBHOOKS__SECRET": "shared"})
    async with Receiver() as receiver:
        running = asyncio.create_task(service.run(None if kill_after_s is not None else point))
        killer = asyncio.create_task(_kill(service, kill_after_s)) if kill_after_s is not None else None
        try:
            tasks = await load(service, receiver.url)
            if killer is not None:
                await killer
            async with asyncio.timeout(PATIENCE_S):
                while any(task.id not in receiver.seen for task in tasks):
                    await asyncio.sleep(0.05)
            daemon = await service.serving()
            await _rest(daemon)
            workers = {worker["pid"] for worker in await daemon.workers()}
            assert workers and workers <= processes_of(tmp_path), point
        finally:
            running.cancel()
            if killer is not None:
                killer.cancel()
            await asyncio.wait({running})
        assert service.daemon is not None
        assert await service.daemon.stop() == 0, point
        await _gone(tmp_path, point)
        check(service, tasks, receiver.seen, point)
    return service.killed


async def _rest(daemon: DaemonProcess) -> None:
    """Until nothing waits or runs any more, what was tried again at the end included."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            queue = (await daemon.control("status"))["queue"]
            if not queue["queued"] and not queue["running"]:
                return
            await asyncio.sleep(0.02)


async def _kill(service: Service, after_s: float) -> None:
    daemon = await service.serving()
    await asyncio.sleep(after_s)
    assert daemon.process is not None
    if daemon.process.returncode is None:
        service.up.clear()  # here: that it is gone is seen a moment later, and nobody is to ask it meanwhile
        daemon.process.send_signal(signal.SIGKILL)


def processes_of(home: Path) -> set[int]:
    """What runs for the daemons of this home, whichever life has started it: it says so in its environment."""
    found: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has gone, or is not ours
            if str(home).encode() in (process / "environ").read_bytes() and alive(int(process.name)):
                found.add(int(process.name))
    return found


async def _gone(home: Path, point: str) -> None:
    until = asyncio.get_running_loop().time() + 10
    while left := processes_of(home):
        assert asyncio.get_running_loop().time() < until, f"{point}: processes {left} are left"
        await asyncio.sleep(0.02)


# What no load brings about within a test; the store's own tests kill it at these too.
ELSEWHERE = {
    "renew": "every 20 s",
    "check": "only where the disk has failed",
}
# What happens often enough for a later time than the first.
OFTEN = frozenset({"append", "claim", "enqueue", "settle"})


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ELSEWHERE])
async def test_nothing_is_lost_at_any_commit(
    tmp_path: Path, model: OfflineModel, daemon: DaemonProcess, verb: str, moment: str
) -> None:
    number = random.Random(f"{SEED}{verb}{moment}").randint(1, 4) if verb in OFTEN else 1
    point = f"{verb}:{moment}:{number}, seed {SEED}"
    killed = await scene(tmp_path, model, daemon, point, None)
    assert killed >= 1, f"{point}: never came to that"
    print(f"crash point {point}: killed {killed} times")


@pytest.mark.parametrize("number", range(20))
async def test_nothing_is_lost_at_a_random_moment(
    tmp_path: Path, model: OfflineModel, daemon: DaemonProcess, number: int
) -> None:
    after = random.Random(f"{SEED}{number}").uniform(0.0, 1.2)
    point = f"random {number}: {after:.3f} s, seed {SEED}"
    killed = await scene(tmp_path, model, daemon, point, after)
    assert killed >= 1, f"{point}: nothing was killed"
    print(f"random moment {number}: {after:.3f} s, seed {SEED}: killed {killed} times")
