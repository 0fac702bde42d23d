"""``/v1/usage``: what a key has used; over the control socket what all have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from aiohttp import web

from claude_daemon.api.control import json_answer
from claude_daemon.api.submission import asker
from claude_daemon.api.tasks import query_of
from claude_daemon.core.budget import usd
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.ports import UsageGroup, UsageRow
from claude_daemon.service.usage import DEFAULT_DAYS, MAX_DAYS, UsageDesk, UsageReport

_COUNTS: Final = (
    "tasks",
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "model_calls",
)
Names = Callable[[], Awaitable[Mapping[str, str]]]
"""The names of keys, by their ids."""


class UsageRoutes:
    """A key sees its own."""

    def __init__(self, desk: UsageDesk) -> None:
        self._desk = desk

    def register(self, router: web.UrlDispatcher) -> None:
        router.add_get("/v1/usage", self.own)

    async def own(self, request: web.Request) -> web.Response:
        return json_answer(await self.document(request, asker(request).key.id, {}))

    async def document(self, request: web.Request, key_id: str | None, names: Mapping[str, str]) -> dict[str, Any]:
        """``?by=day|model|key&days=N``. Raises Refusal."""
        query = query_of(request, "by", "days")
        by, days = _group(query.get("by", UsageGroup.DAY.value)), _days(query.get("days"))
        report = await self._desk.read(by, days, key_id)
        return {"object": "usage", "days": days, "timezone": self._desk.timezone, **_told(report, names)}


class ControlUsageRoutes:
    """``GET usage``: every key's."""

    def __init__(self, routes: UsageRoutes, names: Names) -> None:
        self._routes = routes
        self._names = names

    def register(self, router: web.UrlDispatcher) -> None:
        router.add_get("/control/v1/usage", self.all)

    async def all(self, request: web.Request) -> web.Response:
        return json_answer(await self._routes.document(request, None, await self._names()))


def _group(given: str) -> UsageGroup:
    try:
        return UsageGroup(given)
    except ValueError:
        known = ", ".join(UsageGroup)
        raise Refusal.because(Code.INVALID_REQUEST, f"`by` is one of {known}.", param="by") from None


def _days(given: str | None) -> int:
    if given is None:
        return DEFAULT_DAYS
    if not given.isascii() or not given.isdigit() or len(given) > 3 or not 1 <= int(given) <= MAX_DAYS:
        raise Refusal.because(Code.INVALID_REQUEST, f"`days` is from 1 to {MAX_DAYS}.", param="days")
    return int(given)


def _told(report: UsageReport, names: Mapping[str, str]) -> dict[str, Any]:
    """What has no price is counted in ``unpriced`` and is not in ``cost_usd``; ``charged_usd`` is what counts against
    budgets."""
    head = {UsageGroup.DAY: "day", UsageGroup.MODEL: "model", UsageGroup.KEY: "key_id"}[report.by]
    rows = [{head: row.name, **_named(report.by, row.name, names), **_sums([row])} for row in report.rows]
    return {
        "by": report.by.value,
        "since": report.since,
        "until": report.until,
        "data": rows,
        "total": _sums(report.rows),
        "budgets": [
            {"purse": owner.purse.value, "name": owner.name, **standing} for owner, standing in report.budgets.items()
        ],
    }


def _named(by: UsageGroup, name: str, names: Mapping[str, str]) -> dict[str, Any]:
    return {"name": names.get(name)} if by is UsageGroup.KEY and names else {}


def _sums(rows: Iterable[UsageRow]) -> dict[str, Any]:
    rows = list(rows)
    return {
        **{name: sum(getattr(row, name) for row in rows) for name in _COUNTS},
        "cost_usd": usd(sum(row.cost_micro_usd for row in rows)),
        "charged_usd": usd(sum(row.charged_micro_usd for row in rows)),
        "unpriced": sum(row.unpriced for row in rows),
    }
