"""Finds out which rows of :mod:`~claude_daemon.engine.capabilities` hold for the CLI at hand.

The CLI runs against the gateway's canned answers, whose text tells what the upstream would have been sent. A result
is kept in a file and holds for as long as the executable is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, cast

import orjson

from claude_daemon.core.agent import AgentSpec
from claude_daemon.core.event import TOOL_RESULT
from claude_daemon.core.task import Outcome, State
from claude_daemon.engine import client_tools
from claude_daemon.engine.agent_turn import AgentReader
from claude_daemon.engine.agent_worker import AgentWorker
from claude_daemon.engine.capabilities import Capabilities
from claude_daemon.engine.deadline import TurnLimits, WorkerLost
from claude_daemon.engine.launch import QUIET
from claude_daemon.engine.plan import Binding, Shape, TurnPlan
from claude_daemon.engine.process import SpawnFailed, run_briefly
from claude_daemon.engine.session_home import Home
from claude_daemon.engine.spawner import Conversation, Outfit, Spawner
from claude_daemon.engine.worker import Worker
from claude_daemon.ports import Ended

# Raised when a probe asks for more: then older results are no longer complete.
_FORMAT: Final = 6
_BRIEF_TIMEOUT_S: Final = 30.0
_LIMITS: Final = TurnLimits(stall_seconds=10.0, turn_seconds=20.0)
_HANG_S: Final = 0.3  # long enough for the turn to be under way, which the canned answer never ends
_SYSTEM: Final = "claude-daemon probe: system prompt"
# understood by the gateway's canned answers
HANG: Final = "claude-daemon-probe-hang"
CALL: Final = "claude-daemon-probe-call"
_TOOLS: Final = client_tools.listing([{"name": "probe", "input_schema": {"type": "object", "properties": {}}}])
_FLAGS: Final = {"bare": "--bare", "restricted": "--restricted", "permission_prompts": "--permission-prompts"}
_KEPT: Final = frozenset({"--session-id", "--resume"})
_FORK: Final = "--fork-session"


async def capabilities_of(cli: Path, spawner: Spawner, cache: Path, default_model: str) -> Capabilities:
    """What the CLI can do, from the cache or from a probe. Raises :class:`SpawnFailed` if it does not run at all."""
    identity = _identity(cli)
    cached = _read(cache, identity)
    if cached is not None:
        return cached
    found = await probe(cli, spawner, default_model)
    if not found.missing():  # what a busy machine made fail is tried again at the next start
        with contextlib.suppress(OSError):  # a full disk makes the next start slower, not this one fail
            cache.write_bytes(orjson.dumps({"format": _FORMAT, "cli": identity, "found": asdict(found)}))
    return found


def _identity(cli: Path) -> list[Any]:
    try:
        stat = cli.stat()
    except OSError as error:
        raise SpawnFailed(f"{cli}: {error.strerror}") from error
    return [str(cli), stat.st_size, stat.st_mtime_ns]


def _read(cache: Path, identity: Sequence[Any]) -> Capabilities | None:
    try:
        kept = orjson.loads(cache.read_bytes())
        if kept["format"] == _FORMAT and kept["cli"] == list(identity):
            return Capabilities(**kept["found"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


async def probe(cli: Path, spawner: Spawner, default_model: str) -> Capabilities:
    """What the CLI can do, found out now. The spawner is told as far as it is known meanwhile. Raises SpawnFailed."""
    named, version = await _named(cli)
    flags: dict[str, Any] = {name: flag in named for name, flag in _FLAGS.items()}
    spawner.capabilities = Capabilities(**flags, version=version)
    prober = _Prober(spawner, default_model)
    try:
        found = await prober.run()
        found |= await prober.sessions(named)
    finally:
        await prober.close()
    return Capabilities(**flags, **found, version=version, aliases=prober.aliases)


async def _named(cli: Path) -> tuple[Set[str], str]:
    """The words of ``--help``, among them every flag; and the version."""
    with tempfile.TemporaryDirectory(prefix="claude-daemon-") as home:
        env = {"HOME": home, "PATH": "/usr/bin:/bin", **QUIET}
        (status, version), (_, told) = await asyncio.gather(
            run_briefly([str(cli), "--version"], env, Path(home), _BRIEF_TIMEOUT_S),
            run_briefly([str(cli), "--help"], env, Path(home), _BRIEF_TIMEOUT_S),
        )
    if status != 0 or not version.strip():
        raise SpawnFailed(f"{cli} --version ended with status {status}: is this Claude Code?")
    return set(told.replace(",", " ").split()), version.split()[0]


class _Prober:
    """One process, taken through everything we rely on; a new one after a step that broke it."""

    def __init__(self, spawner: Spawner, default_model: str) -> None:
        self.aliases: dict[str, str] = {}
        self._spawner = spawner
        self._shape = Shape(model=default_model)
        self._worker: Worker | None = None
        self._system_block = False

    async def run(self) -> dict[str, bool]:
        worker = await self._fresh()
        found = {"late_bind": await self._late_bind(worker)}
        found["system_block"] = self._system_block
        found["history"] = await self._attempt(self._history)
        found["clear"] = await self._attempt(self._clear)
        found["composed"] = await self._attempt(self._composed)
        found["set_model"] = await self._attempt(self._set_model)
        found["interrupt"] = await self._attempt(self._interrupt)
        found |= await self._agent()
        found["client_tools"] = False
        if found["late_bind"] and found["history"] and found["interrupt"]:
            await self._fresh()  # tools are bound as a system prompt is, once
            found["client_tools"] = await self._attempt(self._client_tools)
        return found

    async def close(self) -> None:
        if self._worker is not None:
            await self._worker.stop()
            self._spawner.forget(self._worker)

    async def _fresh(self) -> Worker:
        """Raises SpawnFailed when not even this works."""
        await self.close()
        worker = self._worker = self._spawner.prepare(self._shape, canned=True)
        try:
            await self._spawner.spawn(worker, self._shape, worker.wake)
            await worker.ready()
        except WorkerLost as lost:
            raise SpawnFailed(str(lost)) from lost
        return worker

    async def _attempt(self, step: Any) -> bool:
        """A step on a process in order; one that breaks it says no, and costs a new process."""
        worker = self._worker
        if worker is None or worker.process is None or worker.process.gone:
            worker = await self._fresh()
        try:
            if await step(worker):
                return True
        except (WorkerLost, KeyError, IndexError, TypeError, ValueError):
            pass
        await self._fresh()
        return False

    async def _late_bind(self, worker: Worker) -> bool:
        try:
            answer = await worker.ask("initialize", systemPrompt=_SYSTEM)
            models = (answer.get("response") or {}).get("models") or ()
            # the first name of a model wins, but "default" names no model of its own
            for model in models:
                if model.get("resolvedModel") and model.get("value") != "default":
                    self.aliases.setdefault(model["resolvedModel"], model["value"])
            sent = await self._turn(worker, "hello")
        except (WorkerLost, KeyError, TypeError, ValueError):
            await self._fresh()
            return False
        self._system_block = sent["system"].count(_SYSTEM) == 1
        return any(_SYSTEM in text for text in sent["system"])

    async def _history(self, worker: Worker) -> bool:
        await worker.clear()
        sent = await self._turn(worker, "three", history=[("one", "two")])
        return _order(sent) == [("user", "one"), ("assistant", "two"), ("user", "three")]

    async def _clear(self, worker: Worker) -> bool:
        if not await worker.clear():
            return False
        return _order(await self._turn(worker, "alone")) == [("user", "alone")]

    async def _composed(self, worker: Worker) -> bool:
        return _order(await self._turn(worker, "/clear now"))[-1] == ("user", "/clear now")

    async def _set_model(self, worker: Worker) -> bool:
        others = [(model, alias) for model, alias in self.aliases.items() if alias != self._shape.model]
        if not others:
            return False
        resolved, alias = others[0]
        answer = await worker.ask("set_model", model=alias)
        sent = await self._turn(worker, "which model")
        return answer.get("subtype") == "success" and bool(sent["model"] == resolved)

    async def _interrupt(self, worker: Worker) -> bool:
        """A turn that gets no answer is left as a caller would leave it, and the process must still be there."""
        turn = aclosing(cast(Any, worker.turn(_plan(HANG, worker), worker.model, _LIMITS)))
        with contextlib.suppress(TimeoutError):
            async with turn as batches, asyncio.timeout(_HANG_S):
                await anext(batches)
        return await worker.settle() and (await worker.ask("mcp_status")).get("subtype") == "success"

    async def _client_tools(self, worker: Worker) -> bool:
        """Two calls at once reach us and end the turn; with their results the next turn goes on."""
        name, binding = client_tools.upstream_name("probe"), Binding(trust_domain="probe", tools=_TOOLS)
        worker.bind(binding)
        asked = replace(_plan(CALL, worker), binding=binding)
        events, outcome = await self._events(worker, asked)
        calls = [event["content_block"] for event in events if event["type"] == "content_block_start"]
        if outcome.stop_reason != "tool_use" or [call["name"] for call in calls] != ["probe", "probe"]:
            return False
        await worker.clear()
        answered = [{"type": "tool_use", "id": call["id"], "name": name, "input": {}} for call in calls]
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "done"} for call in calls]
        sent = _told((await self._events(worker, replace(asked, history=[("call", answered)], last=results)))[0])
        expected = [["tool_use", call["id"], name] for call in calls]
        expected += [["tool_result", call["id"], None] for call in calls]
        return bool(sent["tools"] == [name] and sent["calls"] == expected)

    async def _agent(self) -> dict[str, bool]:
        """Its calls are put before us, and those that are denied are not made: it calls Read, on nothing. It is offered
        what it is allowed."""
        try:
            agent = AgentSpec(allow=("Read", "TodoWrite"))
            asked, refused, offered = await agent_calls(self._spawner, self._shape, agent)
        except (WorkerLost, SpawnFailed, OSError):
            return {"hooks": False, "todo_list": False}
        return {
            "hooks": asked == ["Read", "Read"] and refused == [True, True],
            "todo_list": "TodoWrite" in offered,
        }

    async def sessions(self, named: Set[str]) -> dict[str, bool]:
        """A conversation is kept under its name, and goes on in other processes; ``named``: the flags that there are.
        None of them is one that serves anybody else."""
        found = dict.fromkeys(("sessions", "fork", "message_ids"), False)
        if not named >= _KEPT:
            return found
        with tempfile.TemporaryDirectory(prefix="claude-daemon-") as directory:
            home = Home(Path(directory).resolve())
            home.make()
            first, copy, message, said_later, said_last = (str(uuid.uuid4()) for _ in range(5))
            await self._said(home, "one", message, session_id=first)
            kept = home.transcript(first) is not None
            found["message_ids"] = kept and home.holds(first, message)
            if kept and _FORK in named:
                sent = await self._said(home, "two", said_later, session_id=copy, resume=first, fork=True)
                apart = home.transcript(copy) is not None and not home.holds(first, said_later)
                found["fork"] = apart and sent == ["one", "two"]
            found["sessions"] = found["fork"]  # which is to go on with one, and more
            if kept and not found["fork"]:  # and a fork that is none may have said something in it
                sent = await self._said(home, "three", said_last, resume=first)
                found["sessions"] = (sent[:1], sent[-1:]) == (["one"], ["three"])
        return found

    async def _said(self, home: Home, text: str, message: str, **conversation: Any) -> list[str]:
        """A turn in a conversation, in a process of its own; what the upstream was told that the user has said."""
        worker = self._spawner.prepare(self._shape, canned=True)
        worker.message = message
        outfit = Outfit(
            agent=AgentSpec(),
            add_dirs=(),
            enclose=lambda command, launch: command,
            conversation=Conversation(config_dir=home.config, **conversation),
        )
        try:
            await self._spawner.spawn(worker, self._shape, worker.wake, outfit)
            await worker.ready()
            return [said for role, said in _order(await self._turn(worker, text)) if role == "user"]
        except (WorkerLost, SpawnFailed, OSError, KeyError, IndexError, TypeError, ValueError):
            return []
        finally:
            await worker.stop()  # which writes the last of its transcript
            self._spawner.forget(worker)

    async def _turn(self, worker: Worker, text: str, history: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
        """One turn; what the upstream was sent. Raises ValueError when the answer tells nothing."""
        return _told((await self._events(worker, _plan(text, worker, history)))[0])

    async def _events(self, worker: Worker, plan: TurnPlan) -> tuple[list[Mapping[str, Any]], Outcome]:
        """One turn; its events and its end. Raises ValueError when it does not end well."""
        events: list[Mapping[str, Any]] = []
        async for batch in worker.turn(plan, worker.model, _LIMITS):
            for item in batch:
                if not isinstance(item, Ended):
                    events.append(item.data)
                elif item.outcome.state is State.SUCCEEDED:
                    return events, item.outcome
                else:
                    raise ValueError(str(item.outcome.failure))
        raise ValueError("the turn has no end")


async def agent_calls(spawner: Spawner, shape: Shape, agent: AgentSpec) -> tuple[list[str], list[bool], list[str]]:
    """A turn of an agent that is made to call its first tool twice: the calls that were put before us, all of which we
    deny, whether each was refused, and the tools that it was offered, none if the turn ends before it tells.

    Raises WorkerLost, SpawnFailed, OSError.
    """
    gate, refused, offered = _Closed(), list[bool](), list[str]()
    worker = spawner.prepare_as(AgentWorker, shape, canned=True)
    outfit = Outfit(agent=agent, add_dirs=(), enclose=lambda command, launch: command)
    try:
        await spawner.spawn(worker, shape, worker.wake, outfit)
        await worker.ready()
        turn = worker.agent_turn(
            _plan(CALL, worker),
            worker.model,
            _LIMITS,
            AgentReader(),
            agent=agent,
            system={},
            gate=gate,
            ask=None,
            where=None,
            limit=None,
            request_id="",
        )
        async for batch in turn:
            for item in batch:
                if not isinstance(item, Ended):
                    refused += [item.data["is_error"]] if item.type == TOOL_RESULT else []
                elif item.outcome.text:
                    with contextlib.suppress(ValueError):
                        offered = orjson.loads(item.outcome.text)["tools"]
    finally:
        await worker.stop()
        spawner.forget(worker)
    return gate.calls, refused, offered


async def text_turn(spawner: Spawner, shape: Shape, begun: Callable[[Worker], None]) -> None:
    """A turn of a text worker; ``begun`` sees it when it is ready. Raises WorkerLost, SpawnFailed, OSError."""
    worker = spawner.prepare(shape, canned=True)
    try:
        await spawner.spawn(worker, shape, worker.wake)
        await worker.ready()
        begun(worker)
        async for _ in worker.turn(_plan("hello", worker), worker.model, _LIMITS):
            pass
    finally:
        await worker.stop()
        spawner.forget(worker)


class _Closed:
    """A :class:`~claude_daemon.ports.Gate` that lets nothing pass."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def called(self, tool: str, given: Mapping[str, Any], *, asked: bool) -> str | None:
        self.calls.append(tool)
        return "not in a probe"

    async def allowed(self, tool: str) -> str | None:
        return "not in a probe"


def _told(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the upstream was sent, which a canned answer tells. Raises ValueError when it tells nothing."""
    deltas = [event["delta"] for event in events if event.get("type") == "content_block_delta"]
    sent: dict[str, Any] = orjson.loads("".join(delta.get("text", "") for delta in deltas))
    return sent


def _plan(text: str, worker: Worker, history: Sequence[tuple[str, str]] = ()) -> TurnPlan:
    return TurnPlan(
        binding=Binding(trust_domain="probe"),
        model=worker.model,
        history=[(asked, [{"type": "text", "text": answer}]) for asked, answer in history],
        last=text,
        max_tokens=None,
        show_thinking=False,
        thinking_tokens=None,
    )


def _order(sent: dict[str, Any]) -> list[tuple[str, str]]:
    return [(role, text.strip()) for role, text in sent["messages"]]
