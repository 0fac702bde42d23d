"""Real processes: framing and ends, the ledger, strays, and a worker on a stand-in for the CLI."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from claude_daemon.core.errors import Code
from claude_daemon.core.task import State
from claude_daemon.core.worker import WorkerState
from claude_daemon.engine import stream
from claude_daemon.engine import worker as worker_module
from claude_daemon.engine.capabilities import Capabilities
from claude_daemon.engine.deadline import TurnLimits, WorkerLost
from claude_daemon.engine.launch import NONCE_VARIABLE
from claude_daemon.engine.ledger import Entry, Ledger, is_alive, start_time
from claude_daemon.engine.plan import Binding, Shape, TurnPlan
from claude_daemon.engine.process import STDERR_LINE_BYTES, STDERR_RING_BYTES, Process, SpawnFailed, run_briefly
from claude_daemon.engine.strays import Strays, children
from claude_daemon.engine.worker import Worker
from claude_daemon.ports import Ended
from tests.support import alive

LIMITS = TurnLimits(stall_seconds=0.5, turn_seconds=5.0)

# Speaks as much of stream-json as a test needs: each line of stdin is answered by BEHAVIOUR[type or subtype].
FAKE = """
import json, signal, sys, time
behaviour = json.loads(sys.argv[1])
for number in behaviour.get("ignore", []):
    signal.signal(number, signal.SIG_IGN)
for line in iter(sys.stdin.readline, ""):
    message = json.loads(line)
    request = message.get("request", {})
    kind = request.get("subtype") or message["type"]
    if message.get("message", {}).get("content") == "/clear":
        kind = "clear"
    for answer in behaviour.get(kind, []):
        if answer == "exit":
            sys.exit(7)
        if answer == "hang":
            time.sleep(60)
        print(json.dumps(answer).replace("REQUEST", message.get("request_id", "")), flush=True)
if behaviour.get("linger"):
    time.sleep(60)
"""
OK = {"type": "control_response", "response": {"subtype": "success", "request_id": "REQUEST"}}
REFUSED = {
    "type": "control_response",
    "response": {"subtype": "error", "request_id": "REQUEST", "error": "no such thing"},
}
RESULT = {"type": "result", "subtype": "success", "result": "", "usage": {"input_tokens": 1, "output_tokens": 1}}
ANSWER = {"type": "assistant", "message": {"id": "m", "role": "assistant", "content": [{"type": "text", "text": "Hi"}]}}


def plan(**fields: Any) -> TurnPlan:
    usual: dict[str, Any] = {
        "binding": Binding(trust_domain="default"),
        "model": "sonnet",
        "history": [],
        "last": "hello",
        "max_tokens": None,
        "show_thinking": False,
        "thinking_tokens": None,
    }
    return TurnPlan(**{**usual, **fields})


Make = Callable[..., Any]


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Worker] = []

    async def make(capabilities: Capabilities | None = None, **behaviour: Any) -> Worker:
        usual = {"mcp_status": [OK], "user": [ANSWER, RESULT], "interrupt": [OK, RESULT]}
        worker = Worker("wrk", None, "sonnet", capabilities or Capabilities(), Shape(model="sonnet"))
        argv = [sys.executable, "-S", "-E", "-c", FAKE, orjson.dumps({**usual, **behaviour}).decode()]
        worker.process = await Process.spawn(argv, {}, tmp_path, worker.received, worker.wake)
        made.append(worker)
        await worker.ready()
        worker.move(WorkerState.IDLE)
        worker.move(WorkerState.BUSY)
        return worker

    yield make
    for worker in made:
        assert worker.process is not None
        worker.process.kill(signal.SIGKILL)
        assert await worker.process.wait_gone(5)


async def run(worker: Worker, **fields: Any) -> tuple[str, Any]:
    said: list[str] = []
    async for batch in worker.turn(plan(**fields), fields.get("model", "sonnet"), LIMITS):
        for item in batch:
            if isinstance(item, Ended):
                return "".join(said), item.outcome
            said.append(item.data.get("delta", {}).get("text", ""))
    raise AssertionError("no end")


async def test_a_turn_is_answered(fake: Make) -> None:
    worker = await fake()
    said, outcome = await run(worker)
    assert (said, outcome.state) == ("Hi", State.SUCCEEDED)
    assert await worker.settle()


async def test_a_model_that_is_refused_is_an_error_and_the_worker_unfit(fake: Make) -> None:
    worker = await fake(set_model=[REFUSED])
    _, outcome = await run(worker, model="other")
    assert (outcome.failure.code, outcome.failure.message) == (Code.MODEL_NOT_FOUND, "no such thing")
    assert worker.unfit


async def test_a_model_that_is_refused_while_history_is_told_is_an_error_too(fake: Make) -> None:
    worker = await fake(set_model=[REFUSED], user=[RESULT])
    began = time.monotonic()
    _, outcome = await run(worker, model="other", history=[("a", [{"type": "text", "text": "b"}])])
    assert outcome.failure.code is Code.MODEL_NOT_FOUND
    assert time.monotonic() - began < 2.5


async def test_a_binding_that_is_refused_is_an_error(fake: Make) -> None:
    worker = await fake(initialize=[REFUSED])
    worker.bind(Binding(trust_domain="default", system="S"))
    _, outcome = await run(worker)
    assert outcome.failure.code is Code.UPSTREAM_INVALID_REQUEST


async def test_a_binding_that_is_refused_after_its_caller_left_makes_the_worker_unfit(fake: Make) -> None:
    worker = await fake(initialize=[REFUSED], clear=[{"type": "conversation_reset"}, RESULT])
    worker.bind(Binding(trust_domain="default", system="Be brief."))
    assert await worker.settle()
    assert await worker.clear()
    assert worker.unfit is not None


async def test_silence_is_a_stall_and_its_worker_comes_back_by_interrupt(fake: Make) -> None:
    worker = await fake(user=[])
    _, outcome = await run(worker)
    assert outcome.failure.code is Code.STALLED
    assert await worker.settle()


async def test_a_worker_that_ignores_the_interrupt_does_not_come_back(
    fake: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "INTERRUPT_GRACE_S", 0.2)
    worker = await fake(user=[], interrupt=[OK])
    await run(worker)
    assert not await worker.settle()


async def test_an_answer_that_is_complete_stands_though_its_result_never_comes(
    fake: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "INTERRUPT_GRACE_S", 0.2)
    worker = await fake(user=[ANSWER], interrupt=[OK])
    said, outcome = await run(worker, max_tokens=0)
    assert (said, outcome.state, outcome.stop_reason) == ("Hi", State.SUCCEEDED, "max_tokens")


async def test_a_process_that_dies_in_its_turn_is_a_crash(fake: Make) -> None:
    worker = await fake(user=["exit"])
    _, outcome = await run(worker)
    assert outcome.failure.code is Code.ENGINE_CRASHED
    assert "status 7" in outcome.failure.message
    with pytest.raises(WorkerLost):
        await worker.ask("mcp_status")


async def test_what_comes_while_nobody_asks_is_no_answer_to_the_next(fake: Make) -> None:
    worker = await fake(clear=[{"type": "conversation_reset"}, RESULT])
    assert await worker.clear()
    worker.move(WorkerState.RECYCLING)
    worker.move(WorkerState.IDLE)
    worker.received([RESULT], 100)
    worker.move(WorkerState.BUSY)
    assert (await run(worker))[0] == "Hi"


@pytest.mark.parametrize(("reset", "cleared"), [([], False), ([{"type": "conversation_reset"}], True)])
async def test_clear_is_believed_only_when_it_was_done(fake: Make, reset: list[Any], cleared: bool) -> None:
    assert await (await fake(clear=[*reset, RESULT])).clear() is cleared


@pytest.mark.parametrize(
    "behaviour",
    [
        {},
        {"linger": True},
        {"linger": True, "ignore": [signal.SIGINT]},
        {"linger": True, "ignore": [signal.SIGINT, signal.SIGTERM]},
        {"mcp_message": ["hang"], "ignore": [signal.SIGINT, signal.SIGTERM]},
    ],
)
async def test_the_stop_ladder_ends_whoever_does_not_listen(
    fake: Make, monkeypatch: pytest.MonkeyPatch, behaviour: dict[str, Any]
) -> None:
    monkeypatch.setattr(worker_module, "STOP_STEP_S", 0.3)
    worker = await fake(**behaviour)
    if "mcp_message" in behaviour:
        worker._control("mcp_message")
    await worker.stop()
    assert worker.process is not None and not alive(worker.process.pid)


async def test_a_busy_worker_is_interrupted_before_it_is_stopped(fake: Make) -> None:
    worker = await fake(user=[])
    turn = asyncio.ensure_future(run(worker))
    await asyncio.sleep(0)
    await asyncio.gather(worker.stop(), turn)
    assert worker.process is not None and worker.process.returncode == 0
    assert turn.result()[1].state is State.SUCCEEDED  # the interrupt's own result, read to its end


async def test_a_line_over_the_cap_ends_the_process_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream.LineFramer.__init__, "__defaults__", (1000,))
    gone = asyncio.Event()
    code = "import sys; sys.stdout.write('{' * 5000); sys.stdout.flush(); sys.stdin.read()"
    process = await Process.spawn([sys.executable, "-c", code], {}, tmp_path, lambda messages, size: None, gone.set)
    async with asyncio.timeout(10):
        await gone.wait()
    assert process.broken is not None and "longer than 1000 bytes" in process.broken


async def test_the_last_of_stderr_is_kept(tmp_path: Path) -> None:
    gone = asyncio.Event()
    code = "import sys; [sys.stderr.write(f'{n:07}\\n') for n in range(20000)]"
    process = await Process.spawn([sys.executable, "-c", code], {}, tmp_path, lambda messages, size: None, gone.set)
    async with asyncio.timeout(10):
        await gone.wait()
    assert len(process.stderr_tail()) == STDERR_RING_BYTES
    assert process.stderr_tail().endswith("0019999\n")
    assert (process.gone, process.returncode, process.rss_bytes()) == (True, 0, None)


async def test_what_it_writes_to_stderr_is_told_by_the_line(tmp_path: Path) -> None:
    gone, heard = asyncio.Event(), list[str]()
    code = "import sys; w=sys.stderr.buffer.write; w(b'one\\n\\n  two \\n\\xff\\n' + b'x' * 5000 + b'\\nthe last')"
    await Process.spawn(
        [sys.executable, "-c", code], {}, tmp_path, lambda messages, size: None, gone.set, wrote=heard.append
    )
    async with asyncio.timeout(10):
        await gone.wait()
    assert heard == ["one", "two", "\ufffd", "x" * 5000, "the last"]


async def test_a_line_of_stderr_without_an_end_is_told_in_parts(tmp_path: Path) -> None:
    process, heard = Process(lambda messages, size: None, lambda: None), list[str]()
    process._wrote = heard.append
    for _ in range(5):
        process.pipe_data_received(2, b"x" * 1000)
    process.connection_lost(None)
    assert heard == ["x" * STDERR_LINE_BYTES, "x" * (5000 - STDERR_LINE_BYTES)]


async def test_a_process_whose_child_holds_the_pipes_is_gone_all_the_same(tmp_path: Path) -> None:
    gone = asyncio.Event()
    argv = ["/bin/sh", "-c", "sleep 60 & echo '{\"pid\":'$!'}'"]
    heard: list[dict[str, Any]] = []
    await Process.spawn(argv, {"PATH": os.defpath}, tmp_path, lambda messages, size: heard.extend(messages), gone.set)
    async with asyncio.timeout(5):
        await gone.wait()
    async with asyncio.timeout(5):  # it was killed, and dies in its own time
        while alive(heard[0]["pid"]):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("argv", [["/nowhere/claude"], ["/etc/hostname"]])
async def test_what_cannot_be_started_says_why(tmp_path: Path, argv: list[str]) -> None:
    with pytest.raises(SpawnFailed, match=argv[0]):
        await Process.spawn(argv, {}, tmp_path, lambda messages, size: None, lambda: None)
    with pytest.raises(SpawnFailed, match=argv[0]):
        await run_briefly(argv, {}, tmp_path, 5)


async def test_a_brief_run_that_is_not_is_ended(tmp_path: Path) -> None:
    with pytest.raises(SpawnFailed, match="did not end within"):
        await run_briefly(["/bin/sleep", "60"], {}, tmp_path, 0.2)


@pytest.fixture
def sleeper() -> Any:
    started: list[subprocess.Popen[bytes]] = []

    def start(nonce: str | None = None) -> subprocess.Popen[bytes]:
        env = {NONCE_VARIABLE: nonce} if nonce is not None else {}
        waits = ["/bin/sh", "-c", "echo up; read line"]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(waits, env=env, stdin=pipe, stdout=pipe, start_new_session=True))
        assert started[-1].stdout is not None
        started[-1].stdout.readline()  # right after an exec the kernel shows no environment yet
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_the_ledger_ends_its_own_and_nobody_else(tmp_path: Path, sleeper: Any) -> None:
    ours, announced, recycled, other_start, foreign = (sleeper(n) for n in ("a", "b", None, "d", "x"))
    ledger = Ledger(tmp_path / "ledger")
    ledger.add(ours.pid, "a")
    ledger.announce("b")
    ledger.add(recycled.pid, "c")
    (tmp_path / "ledger" / "junk.json").write_text("{")
    (tmp_path / "ledger" / "old.json").write_text('{"pid": "1", "started": 2, "nonce": "z"}')
    ledger.add(foreign.pid, "e")
    assert sorted(ledger.end_old_workers()) == sorted([ours.pid, announced.pid])
    assert (ours.wait(5), announced.wait(5)) == (-9, -9)
    assert [p.poll() for p in (recycled, other_start, foreign)] == [None] * 3
    assert list((tmp_path / "ledger").iterdir()) == []
    assert ledger.end_old_workers() == []


def test_a_recycled_pid_is_another_process(sleeper: Any) -> None:
    process = sleeper("n")
    started = start_time(process.pid)
    assert is_alive(Entry(pid=process.pid, started=started, nonce="n"))
    assert not is_alive(Entry(pid=process.pid, started="1", nonce="n"))
    assert not is_alive(Entry(pid=process.pid, started=started, nonce="m"))
    for pid in (None, -1, 0, 1, 2**22 + 1):
        assert not is_alive(Entry(pid=pid, started=None, nonce="n"))


def test_a_finished_worker_leaves_no_entry(tmp_path: Path, sleeper: Any) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.add(sleeper("n").pid, "n")
    ledger.remove("n")
    ledger.remove("n")
    assert ledger.end_old_workers() == []


@pytest.mark.skipif(sys.platform != "linux", reason="no child subreaper there")
def test_strays_are_ended_and_children_of_ours_are_not() -> None:
    """In a process of its own: its children are all the sweeper sees."""
    script = """
import subprocess, sys, time
from claude_daemon.engine.process import become_subreaper
from claude_daemon.engine.strays import GRACE_S, Strays, children
assert become_subreaper()
mine = subprocess.Popen(["/bin/sleep", "60"])
now = [100.0]
strays = Strays(lambda: {mine.pid}, lambda: {"alive"}, lambda: now[0])
def orphan(prefix):
    said = subprocess.run(["/bin/sh", "-c", prefix + " setsid /bin/sleep 60 >&- 2>&- & echo $!"], capture_output=True)
    time.sleep(0.3)  # it has exec'd by then: before that its environment is the shell's
    return int(said.stdout)
marked = orphan("CLAUDE_DAEMON_WORKER=gone")
assert strays.sweep() == [marked], (marked, children())
wiped, living = orphan("env -i"), orphan("CLAUDE_DAEMON_WORKER=alive")
time.sleep(0.1)
assert strays.sweep() == [] == strays.sweep()  # however often: only time tells them from what is being started
now[0] += GRACE_S
assert sorted(strays.sweep()) == sorted([wiped, living])
for _ in range(100):
    strays.sweep()
    if children() == {mine.pid}: break
    time.sleep(0.02)
assert children() == {mine.pid}
late = orphan("env -i")
assert strays.sweep(last=True) == [late]
assert mine.poll() is None
mine.kill()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


def test_this_process_knows_its_children(sleeper: Any) -> None:
    assert sleeper().pid in children()
    assert Strays(children, set).sweep() == []
