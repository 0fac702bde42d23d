"""A few questions that a daemon which works answers: each lane, each way to ask. For ``claudectl test``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from claude_daemon.core import event as event_types
from claudectl.client import Client, below, decoded
from claudectl.errors import ControlError, Mismatch
from claudectl.render import Document, mapping, plain
from claudectl.web import Answer, Failed, Web

PROMPT: Final = "Reply with the single word: ready"
MAX_TOLD: Final = 40
"""Characters of an answer: enough to see that it is one."""
MAX_TOKENS: Final = 64

OK: Final = "ok"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"


@dataclass(slots=True)
class Result:
    """How a question was answered. ``first_delta_seconds`` where the answer came in pieces."""

    name: str
    status: str = OK
    seconds: float = 0.0
    first_delta_seconds: float | None = None
    detail: str = ""

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.status,
            "seconds": round(self.seconds, 6),
            "first_delta_seconds": None if self.first_delta_seconds is None else round(self.first_delta_seconds, 6),
            "detail": self.detail,
        }


@dataclass(slots=True, kw_only=True)
class Smoke:
    """``lanes``: those that serve, as the daemon tells. ``control``: a client for one request."""

    web: Web
    control: Callable[[], Client]
    lanes: Sequence[str]
    model: str
    now: Callable[[], float] = time.monotonic
    _began: float = field(init=False, default=0.0)

    def run(self, name: str) -> Result:
        """Asks one question; what goes wrong is its answer. Raises Mismatch for a daemon of another protocol."""
        result, question = Result(name), QUESTIONS[name]
        if question.lane is not None and question.lane not in self.lanes:
            return Result(name, SKIPPED, detail=f"the {question.lane} lane does not serve here")
        self._began = self.now()
        try:
            result.detail = question.ask(self, result)
        except Mismatch:
            raise
        except (Failed, ControlError) as error:
            result.status, result.detail = FAILED, str(error)
        result.seconds = self.now() - self._began
        return result

    # the questions

    def live(self, result: Result) -> str:
        return _said(self.web.get("/live").body.get("state"))

    def ready(self, result: Result) -> str:
        return _said(self.web.get("/ready").body.get("state"))

    def direct(self, result: Result) -> str:
        return self._chat("direct")

    def text(self, result: Result) -> str:
        return self._chat("text")

    def stream(self, result: Result) -> str:
        """Chat Completions, in pieces."""
        text, finished = "", False
        body = {"model": self.model, "stream": True, "max_tokens": MAX_TOKENS, "messages": _MESSAGES}
        with self.web.events("POST", "/v1/chat/completions", body) as events:
            for _, chunk in events:
                for choice in chunk.get("choices") or ():
                    finished = finished or choice.get("finish_reason") is not None
                    text = self._piece(result, text, mapping(choice.get("delta")).get("content"))
                if error := mapping(chunk.get("error")):
                    raise Failed(plain(error.get("message")))
        if not finished:
            raise Failed("the stream broke off before its end")
        return _answered(text)

    def task(self, result: Result) -> str:
        """A durable task, followed by server-sent events."""
        task = self.web.post("/v1/tasks", self._task()).body
        with self.web.events("GET", f"/v1/{below('tasks', str(task.get('id')), 'events')}") as events:
            return self._followed(result, (event for _, event in events))

    def websocket(self, result: Result) -> str:
        """The same over the WebSocket."""
        with self.web.socket("/v1/stream") as connection:
            connection.say({"op": "submit", "ref": "test", "task": self._task()})
            return self._followed(result, iter(connection))

    def agent(self, result: Result) -> str:
        """Claude Code with a tool that it may use and need not."""
        return self._over_control(result, {"tools": {"allow": ["Read"]}})

    def session(self, result: Result) -> str:
        """A conversation of one turn, which is deleted again."""
        return self._over_control(result, {"session": {}})

    # how they are asked

    def _chat(self, lane: str) -> str:
        """A chat that is answered whole, in the lane that it names."""
        body = {"model": self.model, "max_tokens": MAX_TOKENS, "messages": _MESSAGES}
        answer = self.web.post("/v1/messages", body, {"Claude-Daemon-Lane": lane})
        _check_lane(answer, lane)
        blocks = answer.body.get("content") or ()
        return _answered("".join(str(mapping(block).get("text") or "") for block in blocks))

    def _over_control(self, result: Result, more: Mapping[str, Any]) -> str:
        """Where the key of the home may ask for tools."""
        session = None
        try:
            with self.control().stream("tasks", {**self._task(), **more}) as lines:
                events = map(decoded, lines)
                first = next(events, {})
                told = self._followed(result, events)
            _, task = self.control().get(below("tasks", str(first.get("task"))))
            session = task.get("session_id")
        finally:
            if isinstance(session, str):
                self.control().delete(below("sessions", session))
        return told

    def _followed(self, result: Result, events: Iterator[Document]) -> str:
        """What a task answered, once it has succeeded."""
        text = ""
        for event in events:
            data = mapping(event.get("data"))
            match event.get("type"):
                case "text.delta":
                    text = self._piece(result, text, data.get("text"))
                case event_types.TEXT_RESET:
                    text = ""
                case event_types.TASK_SUCCEEDED:
                    return _answered(text)
                case event_types.TASK_FAILED | event_types.TASK_CANCELLED:
                    raise Failed(_failure(mapping(data.get("error"))))
            if event.get("op") == "error":
                raise Failed(_failure(mapping(event.get("error"))))
        raise Failed("the events broke off before the task's end")

    def _piece(self, result: Result, text: str, piece: object) -> str:
        if piece and result.first_delta_seconds is None:
            result.first_delta_seconds = self.now() - self._began
        return text + str(piece or "")

    def _task(self) -> dict[str, Any]:
        return {"model": self.model, "prompt": PROMPT, "metadata": {"for": "claudectl test"}}


_MESSAGES: Final = [{"role": "user", "content": PROMPT}]


@dataclass(frozen=True, slots=True)
class Question:
    """``lane``: the one that must serve; ``keyed``: it is asked with a key, over the public port."""

    ask: Callable[[Smoke, Result], str]
    lane: str | None = None
    keyed: bool = True


QUESTIONS: Final[Mapping[str, Question]] = {
    "live": Question(Smoke.live, keyed=False),
    "ready": Question(Smoke.ready, keyed=False),
    "direct": Question(Smoke.direct, lane="direct"),
    "text": Question(Smoke.text, lane="text"),
    "stream": Question(Smoke.stream),
    "task": Question(Smoke.task),
    "websocket": Question(Smoke.websocket),
    "agent": Question(Smoke.agent, lane="agent", keyed=False),
    "session": Question(Smoke.session, lane="session", keyed=False),
}
"""By name, in the order in which they are asked."""


def _check_lane(answer: Answer, lane: str) -> None:
    took = answer.headers.get("claude-daemon-lane")
    if took != lane:
        raise Failed(f"the {lane} lane was asked for, and {plain(took)} has answered")


def _answered(text: str) -> str:
    if not text.strip():
        raise Failed("the answer is empty")
    told = plain(" ".join(text.split()))
    return told if len(told) <= MAX_TOLD else f"{told[: MAX_TOLD - 1]}…"


def _said(state: object) -> str:
    if not isinstance(state, str):
        raise Failed("the answer names no state")
    return plain(state)


def _failure(error: Document) -> str:
    return f"{plain(error.get('code'))}: {plain(error.get('message'))}"
