"""What the service needs to tell a receiver of a task's end; ``upstream.webhook`` implements it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookAnswer:
    """What became of one attempt: the receiver's status, or why there was none (fit for logs, no URL in it)."""

    status: int | None = None
    reason: str = ""
    retry_after_seconds: float | None = None

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def gone(self) -> bool:
        """The receiver wants to hear no more of this, ever."""
        return self.status == 410

    def __str__(self) -> str:
        return self.reason if self.status is None else f"status {self.status}"


class WebhookSender(Protocol):
    """The way out to receivers."""

    def check(self, url: str) -> str | None:
        """Why nothing may be sent there, as far as the URL alone tells; None: nothing against it. Pure.

        For a submission; a name is resolved, and its addresses are checked, at each :meth:`send`.
        """

    async def send(self, webhook_id: str, url: str, body: bytes) -> WebhookAnswer:
        """One attempt, signed, within the configured time. Whatever goes wrong is an answer, not an exception."""
