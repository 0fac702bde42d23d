"""What was used and what it cost, added up from the ledger; and how the budgets stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

from claude_daemon.core.budget import ALL, Owner, Purse
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.ports import Ledger, StoreUnavailable, UsageGroup, UsageRow
from claude_daemon.service.budget import Budgets

MAX_DAYS: Final = 366
DEFAULT_DAYS: Final = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """``since`` and ``until`` are the first and the last day of it. ``budgets``: by whose they are."""

    by: UsageGroup
    since: str
    until: str
    rows: Sequence[UsageRow]
    budgets: Mapping[Owner, Mapping[str, Any]]


class UsageDesk:
    def __init__(self, ledger: Ledger, budgets: Budgets) -> None:
        self._ledger = ledger
        self._budgets = budgets

    @property
    def timezone(self) -> str:
        return str(self._budgets.settings.zone)

    async def read(self, by: UsageGroup, days: int, key_id: str | None) -> UsageReport:
        """Of the last ``days``, today included, of one key or of all. Raises Refusal."""
        until = self._budgets.today
        since = (date.fromisoformat(until) - timedelta(days=days - 1)).isoformat()
        try:
            rows = await self._ledger.usage(by, since, key_id)
        except StoreUnavailable as error:
            raise Refusal.because(Code.STORE_UNAVAILABLE, "The store cannot be read now.") from error
        mine = [Owner(Purse.KEY, key_id)] if key_id is not None else [ALL, *self._budgets.limited]
        budgets = {owner: self._budgets.standing(owner) for owner in mine}
        return UsageReport(by=by, since=since, until=until, rows=rows, budgets=budgets)
