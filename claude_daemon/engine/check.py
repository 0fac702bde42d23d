"""The installed CLI, tried beside the workers that serve: what it can do, and that its launches hold what they promise.

No upstream is asked and no credential is there to be used: the gateway's canned answers are all it hears.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from claude_daemon.core.agent import AgentSpec
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.lifecycle import Check, worst
from claude_daemon.engine.agent import AgentLane
from claude_daemon.engine.bait import Bait, bait
from claude_daemon.engine.capabilities import ROWS, Capabilities
from claude_daemon.engine.deadline import WorkerLost
from claude_daemon.engine.lane import TextLane
from claude_daemon.engine.launch import Launch, environment
from claude_daemon.engine.plan import Shape
from claude_daemon.engine.probe import agent_calls, probe, text_turn
from claude_daemon.engine.process import SpawnFailed
from claude_daemon.engine.sandbox import sandbox_missing
from claude_daemon.engine.spawner import Spawner
from claude_daemon.engine.worker import Worker

_AGENT: Final = AgentSpec(allow=("Read",))
_TRUSTED: Final = replace(_AGENT, project_settings=True)
# What a shell gives its program, where engine.cli_path is a script.
_SHELLS: Final = frozenset({"PWD", "OLDPWD", "SHLVL", "_"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One result. ``name`` says what is so where it passes."""

    group: str
    name: str
    status: Check
    reason: str = ""

    def document(self) -> dict[str, Any]:
        return {"group": self.group, "name": self.name, "status": self.status.value, "reason": self.reason}


Step = Callable[[], Awaitable[list[Row]]]


class EngineCheck:
    """One check at a time. Nothing of what is found changes how the daemon works: that is probed at its start."""

    def __init__(self, text: TextLane, agents: AgentLane) -> None:
        self._text = text
        self._agents = agents
        self._trying = asyncio.Lock()

    def begin(self) -> AsyncIterator[Mapping[str, Any]]:
        """Documents as the check goes on: ``{"step"}`` where one begins, its rows ``{"group", "name", "status",
        "reason"}``, at the end ``{"done": true, "status", "version", "seconds"}``. Raises Refusal."""
        if self._trying.locked():
            raise Refusal.because(Code.CONFLICT, "a check of the engine is under way")
        return self._run()

    async def _run(self) -> AsyncIterator[Mapping[str, Any]]:
        began, found = time.monotonic(), list[Check]()
        spawner = self._text.spawner.twin()
        steps: dict[str, Step] = {
            "capabilities": lambda: self._capabilities(spawner),
            "launch profile": lambda: self._launches(spawner),
            "sandbox": self._sandbox,
        }
        async with self._trying:  # of two that were begun before either has got here one waits
            for name, step in steps.items():
                yield {"step": name}
                for row in await step():
                    found.append(row.status)
                    yield row.document()
        yield {
            "done": True,
            "status": worst(found).value,
            "cli": str(self._text.cli),
            "version": spawner.capabilities.version,
            "seconds": round(time.monotonic() - began, 3),
        }

    async def _capabilities(self, spawner: Spawner) -> list[Row]:
        try:
            can = await probe(self._text.cli, spawner, self._model)
        except (SpawnFailed, OSError) as error:
            return [Row(group="cli", name="it starts", status=Check.FAIL, reason=str(error))]
        spawner.capabilities = can
        rows = [Row(group="cli", name=f"Claude Code {can.version} starts", status=Check.PASS)]
        missing = can.missing()
        for name, (what, without) in ROWS.items():
            status, reason = (Check.WARN, f"it does not; {without}") if name in missing else (Check.PASS, "")
            rows.append(Row(group="capability", name=f"{name}: {what}", status=status, reason=reason))
        if self._text.up and (news := set(missing) ^ set(self._text.pool.capabilities.missing())):
            told = f"otherwise than the daemon knows it: {', '.join(sorted(news))}; try again, then restart the daemon"
            rows.append(Row(group="capability", name="as the daemon knows it", status=Check.WARN, reason=told))
        return rows

    @property
    def _model(self) -> str:
        return self._text.pool.default_model

    async def _launches(self, spawner: Spawner) -> list[Row]:
        if not spawner.capabilities.version:
            return []
        rows: list[Row] = []
        with tempfile.TemporaryDirectory(prefix="claude-daemon-") as directory:
            async with bait(Path(directory)) as laid:
                for name, trial in self._trials(spawner, laid):
                    rows += await _tried(name, trial)
        return rows

    def _trials(self, spawner: Spawner, laid: Bait) -> Iterator[tuple[str, Step]]:
        """Each in a directory of its own that is laid as bait: it is HOME and working directory at once."""
        shape, launched = Shape(model=self._model), list[Launch]()

        def prepared(launch: Launch) -> None:
            laid.lay(launch.home)
            launched.append(launch)

        spawner.prepared = prepared
        plain = spawner.twin()
        plain.capabilities = replace(spawner.capabilities, bare=False)
        foreign = list[Row]()

        def looked_at(worker: Worker) -> None:
            foreign.append(_environment_row(worker, environment(launched[-1], spawner.environ)))

        async def text(by: Spawner) -> list[Row]:
            await text_turn(by, shape, looked_at)
            return [_untouched(laid), foreign.pop()]

        async def agent() -> list[Row]:
            asked, refused, _ = await agent_calls(spawner, shape, _AGENT)
            return [_untouched(laid), _gated(asked, refused, spawner.capabilities)]

        async def trusting() -> list[Row]:
            await agent_calls(spawner, shape, _TRUSTED)
            return [_not_led_astray(laid)]

        yield "text worker", lambda: text(spawner)
        if spawner.capabilities.bare:
            yield "text worker without --bare", lambda: text(plain)
        yield "agent", agent
        yield "agent with a trusted project's settings", trusting

    async def _sandbox(self) -> list[Row]:
        """Without one the daemon holds what it promises all the same, and runs less or warns: so this does."""
        settings, name = self._agents.settings, "agents are confined"
        if not settings.wanted:
            told = 'engine.sandbox is "none": whoever may have tools run is this user'
            return [Row(group="sandbox", name=name, status=Check.WARN, reason=told)]
        if (missing := await sandbox_missing(settings.bwrap)) is None:
            return [Row(group="sandbox", name=name, status=Check.PASS)]
        without = "no tool but Read, Grep and Glob runs" if settings.required else "a key with tools is this user"
        return [Row(group="sandbox", name=name, status=Check.WARN, reason=f"{without}: {missing}")]


async def _tried(name: str, trial: Step) -> list[Row]:
    try:
        rows = await trial()
    except (WorkerLost, SpawnFailed, OSError) as error:
        return [Row(group="launch", name=f"{name}: it serves a turn", status=Check.FAIL, reason=str(error))]
    return [replace(row, name=f"{name}: {row.name}") for row in rows]


def _untouched(laid: Bait) -> Row:
    what = [f"{part} ran" for part in laid.ran]
    if laid.heard:
        what.append("a request went elsewhere")
    status = Check.FAIL if what else Check.PASS
    return Row(group="launch", name="nothing of a hostile directory runs", status=status, reason=", ".join(what))


def _not_led_astray(laid: Bait) -> Row:
    """Its hooks may run: somebody trusts it."""
    status, reason = (Check.FAIL, "a request went elsewhere") if laid.heard else (Check.PASS, "")
    return Row(group="launch", name="the way to the model stays", status=status, reason=reason)


def _gated(asked: list[str], refused: list[bool], can: Capabilities) -> Row:
    name = "a call that is denied is not made"
    if not can.hooks:
        return Row(group="launch", name=name, status=Check.WARN, reason=f"without hooks {ROWS['hooks'][1]}")
    well = bool(asked) and refused == [True] * len(asked)
    return Row(
        group="launch",
        name=name,
        status=Check.PASS if well else Check.FAIL,
        reason="" if well else f"asked about {len(asked)} calls, {refused.count(True)} were refused",
    )


def _environment_row(worker: Worker, allowed: Mapping[str, str]) -> Row:
    """By the kernel's word, where it has one."""
    name = "nothing of the daemon's environment is in its own"
    assert worker.process is not None
    path = Path(f"/proc/{worker.process.pid}/environ")
    with contextlib.suppress(OSError):
        has = {entry.partition(b"=")[0].decode(errors="replace") for entry in path.read_bytes().split(b"\0") if entry}
        strange = sorted(has - set(allowed) - _SHELLS)
        status = Check.FAIL if strange else Check.PASS
        return Row(group="launch", name=name, status=status, reason=", ".join(strange))
    return Row(group="launch", name=name, status=Check.WARN, reason="it cannot be read here")
