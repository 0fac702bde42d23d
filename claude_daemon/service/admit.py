"""May this request run, on which lane, with which model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from claude_daemon.core.agent import AgentSpec
from claude_daemon.core.budget import Reservation
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.lifecycle import ADMITTING, DaemonState
from claude_daemon.core.task import Lane, Task, TaskSpec
from claude_daemon.ports import Engine
from claude_daemon.service.budget import Budgets
from claude_daemon.service.dispatch import Dispatcher, Run
from claude_daemon.service.limits import Limits

_DRAIN_RETRY_AFTER_S: Final = 5.0  # a restart takes about so long; behind a balancer another daemon answers meanwhile

# What may follow the prefix of a model that we were not told of: it may come to stand in an argv and in logs.
_MODEL: Final = re.compile(r"claude-[A-Za-z0-9._:@\[\]-]{1,120}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A run that has begun, and what its caller should be told about it."""

    run: Run
    approximated: Sequence[str]


class Admission:
    """The gate. ``models``: alias → model id. ``login``: the kind of credential, told where a lane needs another.

    ``lenient``: whether work is taken although the state says no. ``limits`` and ``budgets`` None: there are none.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        engines: Sequence[Engine],
        *,
        state: Callable[[], DaemonState],
        lenient: Callable[[], bool] = lambda: False,
        store_error: Callable[[], str | None] = lambda: None,
        models: Mapping[str, str],
        default_model: str,
        login: str | None = None,
        limits: Limits | None = None,
        budgets: Budgets | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._engines = {engine.lane: engine for engine in engines}
        self._state = state
        self._lenient = lenient
        self._store_error = store_error
        self.models = models
        self.default_model = default_model
        self._login = login
        self.limits = limits
        self._budgets = budgets

    def model(self, name: str | None) -> str:
        """The model id that a client's name means. Raises Refusal for a name nobody knows."""
        asked = name or self.default_model
        resolved = self.models.get(asked, asked)
        if resolved in self.models.values() or _MODEL.fullmatch(resolved):
            return resolved
        known = ", ".join(sorted(self.models))
        raise Refusal.because(
            Code.MODEL_NOT_FOUND,
            f"unknown model {asked[:100]!r}; known are {known}, and ids that begin with claude-",
            param="model",
        )

    def lane(self, asked: str | None) -> Lane:
        """The lane for a chat: ``Claude-Daemon-Lane`` auto, direct or text. Raises Refusal."""
        if asked in (None, "", "auto"):
            return Lane.DIRECT if Lane.DIRECT in self._engines else Lane.TEXT
        if asked not in ("direct", "text"):
            raise Refusal.because(
                Code.INVALID_REQUEST, "Claude-Daemon-Lane is auto, direct or text", param="Claude-Daemon-Lane"
            )
        lane = Lane(asked)
        if lane not in self._engines:
            why = f"the direct lane needs an API key; here the credential is {self._login or 'missing'}"
            raise Refusal.because(Code.LANE_UNAVAILABLE, why, param="Claude-Daemon-Lane")
        return lane

    def check_open(self) -> None:
        """Raises Refusal while no new work is taken."""
        state = self._state()
        if state in ADMITTING or self._lenient():
            if self._store_error() is not None:
                raise Refusal.because(Code.STORE_UNAVAILABLE, "Nothing can be stored now; nothing was accepted.")
            return
        if state is DaemonState.STARTING:
            raise Refusal.because(Code.NOT_READY, "the daemon is starting", retry_after_seconds=1.0)
        raise Refusal.because(Code.DRAINING, f"the daemon is {state}", retry_after_seconds=_DRAIN_RETRY_AFTER_S)

    def chat(self, spec: TaskSpec) -> Admitted:
        """Admits and starts a chat. Raises Refusal, naming the parameter where one is at fault."""
        self.check_open()
        spec = self.check(spec)
        run = self._dispatcher.submit(spec, self._accept)
        return Admitted(run, self._engines[spec.lane].approximated(spec))

    def _accept(self, chat: Task) -> None:
        """Raises Refusal."""
        self.enter(chat.spec.key_id, turn=True)
        self.reserve(chat)

    def enter(self, key_id: str, *, turn: bool = False) -> None:
        """Counts a request, and a turn that begins with it. Raises Refusal beyond a rate limit."""
        if self.limits is not None:
            self.limits.enter(key_id, turn=turn)

    def reserve(self, task: Task) -> Reservation | None:
        """What a task sets aside; None where no budget bounds it. Raises Refusal when a budget is spent."""
        return None if self._budgets is None else self._budgets.reserve(task)

    def give_back(self, task_id: str) -> None:
        """What :meth:`reserve` has set aside for a task that was not accepted after all."""
        if self._budgets is not None:
            self._budgets.give_back(task_id)

    def _named_models(self, agent: AgentSpec) -> AgentSpec:
        """The same with the models of its subagents by their real names. Raises Refusal."""
        agents = []
        for one in agent.agents:
            try:
                agents.append(replace(one, model=None if one.model is None else self.model(one.model)))
            except Refusal as refusal:
                raise Refusal(replace(refusal.failure, param=f"agents.{one.name}.model")) from None
        return replace(agent, agents=tuple(agents))

    def check(self, spec: TaskSpec) -> TaskSpec:
        """The same with its models' real names. Raises Refusal for what its lane cannot do."""
        spec = replace(
            spec,
            request={**spec.request, "model": self.model(spec.request.get("model"))},
            agent=None if spec.agent is None else self._named_models(spec.agent),
        )
        failure = self._engines[spec.lane].unsupported(spec)
        if failure is not None:
            raise Refusal(failure)
        return spec
