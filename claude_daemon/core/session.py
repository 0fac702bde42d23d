"""Sessions: conversations that several tasks continue, one turn at a time.

Ours have ids ``sess_…``; the name under which Claude Code keeps a conversation is chosen here too, and never public.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTurn:
    """A task's place in a session; immutable.

    ``transcript`` is the UUID under which Claude Code keeps the conversation, ``message`` that of this turn's user
    message: the transcript holds it from the moment on in which the turn has begun. ``begun``: there was a turn before
    that went well, so there must be a transcript. A fork names the session that it continues, and that one's
    transcript.
    """

    id: str
    transcript: str
    message: str
    begun: bool = False
    source: str | None = None
    source_transcript: str | None = None

    @property
    def sessions(self) -> tuple[str, ...]:
        """Those in which nothing else may happen when it begins."""
        return (self.id,) if self.source is None else (self.id, self.source)


def system_of(system: str | Sequence[Mapping[str, Any]] | None) -> str:
    """A Messages API ``system`` as the one text that a session keeps."""
    if system is None or isinstance(system, str):
        return system or ""
    return "\n\n".join(str(block["text"]) for block in system)


def last_said(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The messages after the last answer: what is new to a session, which remembers the others. May be empty."""
    answers = [position for position, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[answers[-1] + 1 :] if answers else messages
