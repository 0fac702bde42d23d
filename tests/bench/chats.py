"""The same question in each dialect, as request bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.bench.client import post

MODEL = "sonnet"
UPSTREAM_MODEL = "claude-sonnet-5-5"
PROMPT = "What is the capital of France? [[tokens=20]]"
_MAX_TOKENS = 1024
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"capital": {"type": "string"}, "inhabitants": {"type": "integer"}},
    "required": ["capital", "inhabitants"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """One streamed chat. ``history``: (question, answer) pairs before the prompt."""

    prompt: str = PROMPT
    system: str = ""
    history: Sequence[tuple[str, str]] = ()
    schema: Mapping[str, Any] | None = None

    def with_system(self, system: str) -> Chat:
        return replace(self, system=system)

    def _turns(self) -> list[dict[str, Any]]:
        turns: list[dict[str, Any]] = []
        for asked, answer in self.history:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return [*turns, {"role": "user", "content": self.prompt}]

    def openai(self) -> dict[str, Any]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, Any] = {"model": MODEL, "stream": True, "messages": [*system, *self._turns()]}
        if self.schema is not None:
            form = {"name": "answer", "schema": self.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body

    def anthropic(self, model: str = MODEL) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "max_tokens": _MAX_TOKENS, "stream": True, "messages": self._turns()}
        if self.system:
            body["system"] = self.system
        if self.schema is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": self.schema}}
        return body

    def request(self, dialect: str, lane: str, key: str, request_id: str = "") -> bytes:
        """To the daemon; ``dialect`` openai or anthropic."""
        headers = {"Authorization": f"Bearer {key}", "Claude-Daemon-Lane": lane}
        if request_id:
            headers["X-Request-ID"] = request_id
        if dialect == "openai":
            return post("/v1/chat/completions", self.openai(), headers)
        return post("/v1/messages", self.anthropic(), headers)

    def upstream_request(self, key: str) -> bytes:
        """To the Messages API itself."""
        headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
        return post("/v1/messages", self.anthropic(UPSTREAM_MODEL), headers)


def pairs(count: int) -> list[tuple[str, str]]:
    """A history of so many exchanges."""
    return [(f"Question {n}: what comes after {n}?", f"After {n} comes {n + 1}.") for n in range(1, count + 1)]
