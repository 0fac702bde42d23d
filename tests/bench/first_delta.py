"""How long until the first text arrives, with nothing else going on: rows 1 to 3."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from tests.bench.chats import SCHEMA, Chat, pairs
from tests.bench.client import Connection
from tests.bench.measure import Case, Row, Scale, compared, interleave
from tests.bench.stage import Daemon, Stage

_TEXT_AT_MOST = 1.3
_DIRECT_AT_MOST_MORE_MS = 5.0
_RAW = "raw warm CLI"
# A fresh process becomes twice as fast within its first turns.
_WARM_UP = 5


def _served(daemon: Daemon, chat: Chat, dialect: str = "openai", lane: str = "text") -> Case:
    """One streamed chat; the worker is at rest again when it returns, so that its /clear disturbs no one."""
    request = chat.request(dialect, lane, daemon.key)

    def run() -> float:
        first = daemon.http.first_delta(request)
        if lane == "text":
            daemon.calm()
        return first

    return run


def text(stage: Stage, scale: Scale) -> Iterator[Row]:
    """A warm worker against a raw warm process, and against a process per request."""
    daemon, raw, chat = stage.daemon, stage.raw, Chat()
    openai, anthropic = _served(daemon, chat), _served(daemon, chat, "anthropic")
    got = interleave(
        scale.warm,
        {"raw": lambda: raw.turn_and_clear(chat), "openai": openai, "anthropic": anthropic},
        warm_up=_WARM_UP,
    )
    for dialect, route in (("openai", "/v1/chat/completions"), ("anthropic", "/v1/messages")):
        yield compared(f"text lane, warm, {route}", got[dialect], _RAW, got["raw"], at_most=_TEXT_AT_MOST)
    got = interleave(scale.per_process, {"process": stage.per_request(chat.prompt), "openai": openai})
    yield compared("text lane, warm", got["openai"], "claude -p per request", got["process"])


def system(stage: Stage, scale: Scale) -> Iterator[Row]:
    """Another system prompt in every request: a spare that is bound late, on both sides."""
    daemon, numbers = stage.daemon, itertools.count(1)

    def chat() -> Chat:
        return Chat(system=f"You are assistant number {next(numbers)}. " + "Answer briefly and kindly. " * 12)

    def served() -> float:
        daemon.calm(spare=True)
        return daemon.http.first_delta(chat().request("openai", "text", daemon.key))

    def spare() -> float:
        daemon.calm(spare=True)
        with stage.raw_cli() as cli:
            return cli.turn(chat())

    before = dict(daemon.control("status")["starts"])
    got = interleave(scale.spawned, {"raw": spare, "served": served})
    starts = _since(daemon, before)
    note = " · ".join(f"{count} {kind}" for kind, count in starts.items())
    yield compared(
        "text lane, another system prompt each time",
        got["served"],
        "raw spare, bound late",
        got["raw"],
        notes=[f"starts: {note}"],
        details={"starts": starts},
    )
    daemon.calm(spare=True)


def _since(daemon: Daemon, before: dict[str, int]) -> dict[str, int]:
    after = daemon.control("status")["starts"]
    return {kind: after[kind] - before.get(kind, 0) for kind in after}


def history(stage: Stage, scale: Scale) -> Iterator[Row]:
    """Earlier exchanges that the process is told first, on both sides."""
    daemon, raw = stage.daemon, stage.raw
    for count in (1, 5, 20):
        chat = Chat(history=pairs(count))

        def replayed(chat: Chat = chat) -> float:
            return raw.turn_and_clear(chat)

        got = interleave(scale.history, {"raw": replayed, "served": _served(daemon, chat)}, warm_up=2)
        named = f"text lane, {count} pair{'s' if count > 1 else ''} of history"
        yield compared(named, got["served"], f"{_RAW}, same replay", got["raw"])


def schema(stage: Stage, scale: Scale) -> Iterator[Row]:
    """An answer in the form that a schema asks for; it comes whole, after two model calls."""
    daemon, chat = stage.daemon, Chat(schema=SCHEMA)
    with stage.raw_cli() as raw:
        cases: dict[str, Callable[[], float]] = {
            "raw": lambda: raw.turn_and_clear(chat),
            "served": _served(daemon, chat),
        }
        got = interleave(scale.schema, cases, warm_up=_WARM_UP)
    yield compared("text lane, with a schema", got["served"], f"{_RAW}, same schema", got["raw"])


def direct(stage: Stage, scale: Scale) -> Iterator[Row]:
    """The direct lane against the same question put to the upstream itself."""
    daemon, chat = stage.daemon, Chat()
    with Connection(stage.base_url) as upstream:
        asked = chat.upstream_request(stage.api_key)
        cases: dict[str, Callable[[], float]] = {
            "upstream": lambda: upstream.first_delta(asked),
            "anthropic": _served(daemon, chat, "anthropic", "direct"),
            "openai": _served(daemon, chat, "openai", "direct"),
        }
        got = interleave(scale.direct, cases, warm_up=_WARM_UP)
    for dialect, route in (("anthropic", "/v1/messages"), ("openai", "/v1/chat/completions")):
        yield compared(
            f"direct lane, {route}",
            got[dialect],
            "upstream itself",
            got["upstream"],
            at_most_more_ms=_DIRECT_AT_MOST_MORE_MS,
        )
