"""Claude Code without us: the same binary with the same launch profile, driven over its pipes as directly as can be."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import orjson

from claude_daemon.engine.stream import CLEAR_LINE, LineFramer, assistant_line, control_line, decode, user_line
from tests.bench.chats import Chat

_TIMEOUT_S = 60.0
_READ_BYTES = 256 * 1024
_STREAM_INPUT = "--input-format=stream-json"


class RawFailed(Exception):
    """The CLI ended, or answered with an error."""


class RawCli:
    """A warm process. Ready when constructed; unbound until its first turn."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> None:
        self.process = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._in, self._out = self.process.stdin.fileno(), self.process.stdout.fileno()
        self._framer = LineFramer()
        self._bound = False
        try:
            self._write(control_line("ready", "mcp_status"))
            self._until("control_response")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it, whatever it does."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._in, data) :]

    def _read(self) -> list[dict[str, Any]]:
        ready, _, _ = select.select([self._out], [], [], _TIMEOUT_S)
        chunk = os.read(self._out, _READ_BYTES) if ready else b""
        if not chunk:
            raise RawFailed("the CLI ended, or said nothing in time")
        return [message for line in self._framer.feed(chunk) if (message := decode(line)) is not None]

    def _until(self, kind: str) -> dict[str, Any]:
        while True:
            for message in self._read():
                if message.get("type") == kind:
                    return message

    def turn(self, chat: Chat) -> float:
        """Seconds to the first text (with a schema: to the answer, which comes whole); returns after the result."""
        began = time.perf_counter()
        if not self._bound:
            self._bind(chat)
        for asked, answer in chat.history:
            self._write(user_line(asked, query=False))
            self._until("result")
            self._write(assistant_line([{"type": "text", "text": answer}]))
        self._write(user_line(chat.prompt))
        first: float | None = None
        while True:
            messages = self._read()
            now = time.perf_counter() - began
            for message in messages:
                if first is None and chat.schema is None and _is_text(message):
                    first = now
                if message.get("type") == "result":
                    if message.get("is_error") or (first is None and "structured_output" not in message):
                        raise RawFailed(orjson.dumps(message).decode()[:500])
                    return now if first is None else first

    def _bind(self, chat: Chat) -> None:
        """What the daemon sends to a process that it binds: prompt and schema, and thinking off; nothing is awaited."""
        self._bound = True
        fields: dict[str, Any] = {}
        if chat.system:
            fields["systemPrompt"] = chat.system
        if chat.schema is not None:
            fields["jsonSchema"] = chat.schema
        if fields:
            self._write(control_line("bind", "initialize", **fields))
        self._write(control_line("thinking", "set_max_thinking_tokens", max_thinking_tokens=0))

    def clear(self) -> None:
        self._write(CLEAR_LINE)
        self._until("result")

    def turn_and_clear(self, chat: Chat) -> float:
        first = self.turn(chat)
        self.clear()
        return first


def process_per_request(argv: Sequence[str], env: Mapping[str, str], cwd: str, prompt: str) -> float:
    """``claude -p`` for one prompt, as the peers do it, with our lean flags: seconds from spawn to first text."""
    argv = [arg for arg in argv if arg != _STREAM_INPUT]
    began = time.perf_counter()
    with subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        bufsize=0,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(prompt.encode())
            process.stdin.close()
            return _first_text(process.stdout.fileno(), began)
        finally:
            process.kill()


def _first_text(fd: int, began: float) -> float:
    framer, first = LineFramer(), None
    while True:
        ready, _, _ = select.select([fd], [], [], _TIMEOUT_S)
        chunk = os.read(fd, _READ_BYTES) if ready else b""
        now = time.perf_counter() - began
        if not chunk:
            raise RawFailed("claude -p ended without a result")
        for line in framer.feed(chunk):
            message = decode(line) or {}
            if first is None and _is_text(message):
                first = now
            if message.get("type") == "result":
                if first is None or message.get("is_error"):
                    raise RawFailed(line.decode()[:500])
                return first


def _is_text(message: Mapping[str, Any]) -> bool:
    event = message.get("event")
    if message.get("type") != "stream_event" or not isinstance(event, dict):
        return False
    return event.get("type") == "content_block_delta" and bool(event["delta"].get("text"))
