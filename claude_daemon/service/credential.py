"""Whether the upstream takes our credential, as far as the work of late has shown. Nothing is asked for it alone."""

from __future__ import annotations

from typing import Final

from claude_daemon.core.errors import Code
from claude_daemon.core.lifecycle import Check
from claude_daemon.core.recent import Recent
from claude_daemon.core.task import Outcome, State
from claude_daemon.ports import Clock

RECENT_S: Final = 300.0
"""A refusal among answers: so long somebody should look whether one of several keys is dead."""


class CredentialStanding:
    def __init__(self, *, monotonic: Clock) -> None:
        self._monotonic = monotonic
        self._refused = Recent(RECENT_S)
        self._refused_last = False
        self._said = ""

    def ended(self, outcome: Outcome) -> bool:
        """A turn has ended; whether that changes what is known."""
        failure = outcome.failure
        if failure is not None and failure.code is Code.UPSTREAM_CREDENTIAL:
            news = not self._refused_last
            self._refused_last, self._said = True, failure.message
            self._refused.note(self._monotonic())
            return news
        if outcome.state is State.SUCCEEDED and self._refused_last:
            self._refused_last = False
            return True
        return False

    def renewed(self) -> None:
        """There is another credential, of which nothing is known."""
        self._refused_last = False
        self._refused = Recent(RECENT_S)

    @property
    def refused_recently(self) -> int:
        return self._refused.count(self._monotonic())

    def judged(self) -> tuple[Check, str]:
        if self._refused_last:
            return Check.FAIL, f"the upstream refused the credential, and nothing has succeeded since: {self._said}"
        if self.refused_recently:
            return Check.WARN, f"the upstream refused the credential in the last {RECENT_S:.0f} s: {self._said}"
        return Check.PASS, ""
