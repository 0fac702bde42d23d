"""An agent's process: one turn, in which it may call tools."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, NamedTuple

from claude_daemon.core.agent import STARTS_AGENTS, AgentSpec, Approval
from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.event import TOOL_RESULT, TOOL_USE, Emission
from claude_daemon.core.worker import WorkerState
from claude_daemon.engine.agent_changes import PATHS, Changes
from claude_daemon.engine.agent_facts import Facts
from claude_daemon.engine.agent_turn import AgentReader
from claude_daemon.engine.cgroup import Group
from claude_daemon.engine.client_tools import is_server_request
from claude_daemon.engine.deadline import TurnLimits, TurnTimeout, Watch, WorkerLost
from claude_daemon.engine.mcp import Servers
from claude_daemon.engine.plan import TurnPlan
from claude_daemon.engine.sandbox import Place
from claude_daemon.engine.stream import control_refusal, control_reply
from claude_daemon.engine.worker import Worker
from claude_daemon.ports import Answer, Ask, Ended, Gate, Limit, Question

_HOOK: Final = "before-tool"
_ANY_TOOL: Final = "*"
_NOBODY: Final = "the daemon is not there to write it down"
_ALLOW, _DENY, _ASK = "allow", "deny", "ask"
"""A hook's decisions. To ask is to deny where there is nobody to be asked."""
_HOOK_TIMEOUT_S: Final = 600
"""The CLI's own patience with a hook; ours ends sooner, and with a reason."""
_START_AGENTS: Final = frozenset({STARTS_AGENTS, "Task"})
"""The tool that starts subagents, and the name it had before."""
_AGENT_INPUT: Final = frozenset({"description", "prompt", "subagent_type"})
"""What the model may say of one; not which model it is, where it works, or whether it is waited for."""


class AgentWorker(Worker):
    """Single use: ``/clear`` is no boundary between tenants where there are tools. ``places``: its directories, open
    from the spawn until it is forgotten; the first one is where it works. ``group``: its cgroup, if it has one, from
    just before its start until then."""

    places: tuple[Place, ...] = ()
    group: Group | None = None
    _servers: Servers | None = None
    killed = False

    def rss_bytes(self) -> int | None:
        """Of the sandbox too, and of whatever its tools have left running."""
        return self.process.tree_rss_bytes() if self.process is not None else None

    async def brought_up(self) -> None:
        """Waits until its process, which has just been started, can be used. Raises WorkerLost."""
        if self.killed:  # before there was a process
            raise WorkerLost("killed")
        await self.ready()
        self.move(WorkerState.IDLE)

    def kill(self) -> None:
        """Its process, or the one that it is about to have, ends now; whoever waits for it sees that."""
        self.killed, self.unfit = True, self.unfit or "killed"
        if self.process is not None:
            self.process.kill(signal.SIGKILL)

    def retire(self) -> None:
        """It serves no further turn; before it is stopped or killed."""
        if self.state not in (WorkerState.RETIRING, WorkerState.GONE):
            self.move(WorkerState.RETIRING)

    async def kill_now(self) -> None:
        self.retire()
        await super().kill_now()

    async def stop(self) -> None:
        self.retire()
        await super().stop()

    async def agent_turn(
        self,
        plan: TurnPlan,
        cli_model: str,
        limits: TurnLimits,
        reader: AgentReader,
        *,
        agent: AgentSpec,
        servers: Servers | None = None,
        system: Mapping[str, Any],
        gate: Gate | None,
        ask: Ask | None,
        where: str | None,
        limit: Limit | None,
        request_id: str,
    ) -> AsyncGenerator[Sequence[Emission | Ended]]:
        """Runs the turn; the last batch ends in :class:`Ended`. ``system``: fields of ``initialize``. ``ask``: of whom
        a call is asked that no rule allows, None for nobody. ``where``: the directory that is told with it."""
        self._turn_open, self.request_id = True, request_id
        if self.account is not None:
            self.account.begin(request_id, None, limit)
        watch = Watch(limits)
        self._agent, self._gate, self._gated = agent, gate, set[str]()
        self._ask, self._where = ask, where
        self._asked: dict[str, Callable[[], None]] = {}  # by the CLI's request; what takes the question back
        self._answers: deque[tuple[str, Question, Answer]] = deque()  # to such, that the CLI is still to be told
        self._subagents, self._servers = frozenset(one.name for one in agent.agents), servers or Servers(agent)
        self._changes, self._facts = Changes(self.places), Facts()
        try:
            await self.set_up(system)
            self._prepare(plan, cli_model)
            self._write(self._user_line(plan.told_at_once()))
            async with aclosing(self._work(reader, watch)) as batches:
                async for batch in batches:
                    yield batch
        except TurnTimeout as timeout:
            yield [self._over(reader, timeout.failure)]
        except WorkerLost as lost:
            self._turn_open = False
            yield [self._over(reader, self._death(lost))]

    def _death(self, lost: WorkerLost) -> Failure:
        if self.group is None or not self.group.out_of_memory:
            return super()._death(lost)
        mb = self.group.memory_mb
        why = f"the task used more than {mb} MB of memory: agent.max_memory_mb, for all its processes together"
        return Failure(code=Code.MEMORY_LIMIT, message=why)

    async def set_up(self, system: Mapping[str, Any]) -> None:
        """The hook is there before anything is asked: a CLI that refuses it gets no task. One that has none is asked
        nothing before all of the task counts as having been done."""
        fields = dict(system)
        if self._can.hooks:
            fields["hooks"] = {
                "PreToolUse": [{"matcher": None, "hookCallbackIds": [_HOOK], "timeout": _HOOK_TIMEOUT_S}]
            }
        elif (why := await self._may(_ANY_TOOL, {}, asked=False)) is not None:
            raise WorkerLost(why)
        assert self._servers is not None
        self._servers.unasked = not self._can.hooks
        if self._servers.names:
            fields["sdkMcpServers"] = self._servers.names
        answer = await self.ask("initialize", **fields)
        if answer.get("subtype") != "success":
            raise WorkerLost(f"Claude Code refused to be initialized: {answer.get('error')}")

    def _serve(self, message: Mapping[str, Any]) -> None:
        """What the CLI says to one of the task's servers; its answer may come later."""
        request_id, request = str(message.get("request_id")), message["request"]

        def reply(response: Mapping[str, Any]) -> None:
            if self.process is not None and not self.process.gone:
                self._write(control_reply(request_id, {"mcp_response": response}))

        said = request.get("message")
        if self._servers is None or not isinstance(said, dict):
            self._write(control_refusal(request_id, "no such MCP server"))
            return
        self._servers.answer(str(request.get("server_name")), said, reply)

    async def _work(self, reader: AgentReader, watch: Watch) -> AsyncGenerator[Sequence[Emission | Ended]]:
        interrupted = False
        while self._turn_open:
            if reader.interrupt and not interrupted:
                interrupted = True
                self._interrupt("the turn is over", watch)
            while self._answers:
                await self._pass_on(*self._answers.popleft(), over=interrupted)
            async with watch:
                messages = await self._messages()
            if self._refused is not None:  # else it would be the model of its start that answers
                reader.fail(self._refused)
            batch: list[Emission | Ended] = []
            for message in messages:
                watch.seen(message)
                if message.get("type") == "control_cancel_request":
                    if (take_back := self._asked.pop(str(message.get("request_id")), None)) is not None:
                        take_back()
                    continue
                if message.get("type") == "control_request":
                    if (hooked := _hooked(message)) is not None:
                        batch += self._facts.add({}, reader.called(*hooked))
                    if batch:  # what it is about to do is told before it does it
                        yield batch
                        batch = []
                    batch += await self._answer_request(message)
                    continue
                self._check(reader, message)
                batch += await self._judged(reader, self._facts.add(message, reader.feed(message)))
                if reader.outcome is not None:
                    self._turn_open = False
                    self._bar()
                    outcome = replace(self._metered(reader.outcome), diff=await self._changes.diff())
                    outcome = replace(outcome, files=tuple(self._facts.files))
                    batch.append(Ended(outcome=outcome))
                    break
            watch.tool_runs = reader.tool_runs and not interrupted
            if batch:
                yield batch

    async def _judged(self, reader: AgentReader, emissions: list[Emission]) -> list[Emission]:
        """A tool that ran without asking us was not written down: the attempt ends there. Without hooks it is written
        down when it is told."""
        for emission in emissions:
            if not self._can.hooks:
                if emission.type == TOOL_USE:
                    await self._may(emission.data["name"], emission.data["input"], asked=False)
                    await self._changes.before(emission.data["name"], emission.data["input"])
                continue
            ran = emission.type == TOOL_RESULT and not emission.data["is_error"]
            if ran and emission.data["id"] not in self._gated:
                why = f"Claude Code ran {emission.data['name']} without asking the daemon"
                reader.fail(Failure(code=Code.INTERNAL, message=why))
        return emissions

    def _check(self, reader: AgentReader, message: Mapping[str, Any]) -> None:
        """Of what the reader leaves out: whether the servers are there."""
        if message.get("type") == "system" and message.get("subtype") == "init":
            names = self._servers.names if self._servers is not None else ()
            for server in message.get("mcp_servers") or ():
                if server.get("name") in names and server.get("status") != "connected":
                    why = f"Claude Code does not reach the MCP server {server['name']}: {server.get('status')}"
                    reader.fail(Failure(code=Code.MCP_UNAVAILABLE, message=why))

    async def _answer_request(self, message: Mapping[str, Any]) -> Sequence[Emission]:
        """What followers are told of it at once."""
        request_id, request = str(message.get("request_id")), message.get("request") or {}
        if is_server_request(message):
            return ()  # answered as it came
        if (hooked := _hooked(message)) is not None:
            decision, why = await self._decide(hooked.call, hooked.tool, hooked.given)
            self._write(control_reply(request_id, _decision(decision, why) if decision is not None else {}))
            if decision == _DENY:
                return self._facts.denied(hooked.call, hooked.tool, why)
        elif request.get("subtype") == "can_use_tool":
            await self._permit(request_id, request)
        else:
            self._write(control_refusal(request_id, f"unknown request {request.get('subtype')}"))
        return ()

    async def _permit(self, request_id: str, request: Mapping[str, Any]) -> None:
        """No rule of the task allows the call: somebody is asked, or nobody."""
        given = request.get("input") or {}
        if self._agent.approval is Approval.AUTO:  # without hooks it has come to this
            self._write(control_reply(request_id, {"behavior": "allow", "updatedInput": given}))
            return
        if self._ask is None:
            self._write(control_reply(request_id, {"behavior": "deny", "message": "no rule allows it"}))
            return

        def answered(answer: Answer) -> None:
            self._answers.append((request_id, question, answer))
            self.wake()

        tool = str(request.get("tool_name"))
        question = Question(
            tool=tool,
            tool_use_id=str(request.get("tool_use_id") or ""),
            given=given,
            cwd=self._where,
            diff=await self._changes.proposed(tool, given),
        )
        self._asked[request_id] = self._ask(question, answered)

    async def _pass_on(self, request_id: str, question: Question, answer: Answer, *, over: bool) -> None:
        """Somebody's answer to the CLI, unless its question was taken back. What is allowed is written down first: who
        is killed in between has done nothing, or is known to have done something. ``over``: nothing begins any more."""
        if self._asked.pop(request_id, None) is None or over:
            return
        why = await self._granted(question) if answer.allow else answer.message or "it was denied"
        if why is None:
            self._write(control_reply(request_id, {"behavior": "allow", "updatedInput": question.given}))
            return
        self._facts.expect(question.tool_use_id, why)
        self._write(control_reply(request_id, {"behavior": "deny", "message": why}))

    async def _granted(self, question: Question) -> str | None:
        """Why a call that somebody has allowed is not made after all."""
        why = _NOBODY if self._gate is None else await self._gate.allowed(question.tool)
        if why is None:
            self._may_run(question.tool_use_id, question.tool)
        return why

    def _may_run(self, call: str, tool: str) -> None:
        if call not in self._gated and self._servers is not None:
            self._servers.grant(tool)
        self._gated.add(call)

    async def _may(self, tool: str, given: Mapping[str, Any], *, asked: bool) -> str | None:
        return _NOBODY if self._gate is None else await self._gate.called(tool, given, asked=asked)

    async def _decide(self, call: str, tool: str, given: Mapping[str, Any]) -> tuple[str | None, str]:
        """What the CLI is told, and why. None leaves it to the rules, which it has from its command line."""
        why = self._no_agent(given) if tool in _START_AGENTS else None
        asked = self._agent.asks(tool, given) and (tool not in PATHS or self._changes.reaches(tool, given))
        if why is None:
            why = await self._may(tool, given, asked=asked)
        if why is not None:
            return _DENY, why
        if not asked:
            self._may_run(call, tool)
        await self._changes.before(tool, given)
        if self._agent.approval is Approval.AUTO:
            return _ALLOW, "the task's approval is auto"
        return (None, "") if self._agent.ruled(tool, given) else (_ASK, "no rule of the task allows it")

    def _no_agent(self, given: Mapping[str, Any]) -> str | None:
        """Why no such subagent is started: there are none but the task's own, and each is as the task says."""
        if given.get("subagent_type") not in self._subagents:
            known = ", ".join(sorted(self._subagents)) or "none"
            return f"there is no such agent here; subagent_type must be one of: {known}"
        if beyond := sorted(set(given) - _AGENT_INPUT):
            return f"{beyond[0]} cannot be chosen here: leave it out"
        return None

    def _bar(self) -> None:
        """What it has started may run on for a moment, and knows the way to the model: nobody would be charged."""
        if self.account is not None:
            self.account.bar("the turn is over")

    def _over(self, reader: AgentReader, failure: Failure) -> Ended:
        self._bar()
        return Ended(outcome=replace(self._metered(reader.give_up(failure)), files=tuple(self._facts.files)))


class _Hooked(NamedTuple):
    """A call that the hook tells of; ``subagent`` None: the main conversation's."""

    call: str
    tool: str
    given: Mapping[str, Any]
    subagent: str | None


def _hooked(message: Mapping[str, Any]) -> _Hooked | None:
    request = message.get("request") or {}
    if request.get("subtype") != "hook_callback" or request.get("callback_id") != _HOOK:
        return None
    told = request.get("input") or {}
    call = str(request.get("tool_use_id") or told.get("tool_use_id"))
    return _Hooked(call, str(told.get("tool_name")), told.get("tool_input") or {}, told.get("agent_id"))


def _decision(what: str, why: str) -> Mapping[str, Any]:
    return {
        "hookSpecificOutput": {
            "hookEventName": "PreToolUse",
            "permissionDecision": what,
            "permissionDecisionReason": why,
        }
    }
