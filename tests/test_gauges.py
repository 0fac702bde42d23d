"""What is read at a scrape, as far as it is reckoned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from claude_daemon.core.budget import ALL, Owner, Purse
from claude_daemon.gauges import Gauges, _left
from claude_daemon.ports import StoreUnavailable
from claude_daemon.service.outside import Outside
from claude_daemon.service.space import Space
from claude_daemon.telemetry.metrics import Labels

UNASKED: dict[str, Any] = dict.fromkeys(
    ("health", "text", "agents", "sessions", "durable", "keys", "front", "home", "disk", "now", "lost")
)


def standing(day: tuple[float | None, float], month: tuple[float | None, float] = (None, 0.0)) -> dict[str, Any]:
    """Limit and spent, of both spans."""
    return {name: {"limit_usd": limit, "spent_usd": spent} for name, (limit, spent) in (("day", day), ("month", month))}


async def least(standings: Mapping[Owner, Mapping[str, Any]]) -> Mapping[Labels, float]:
    return await _left(standings.__getitem__, list(standings))


async def test_where_nothing_limits_all_is_left() -> None:
    left = await least({ALL: standing((None, 100.0))})
    assert left == {(purse, span): 1.0 for purse in ("all", "domain", "key") for span in ("day", "month")}


async def test_of_each_kind_the_one_with_least_left_is_told_and_nobody_is_named() -> None:
    left = await least(
        {
            ALL: standing((10.0, 4.0), (100.0, 4.0)),
            Owner(Purse.KEY, "key_1"): standing((1.0, 0.25)),
            Owner(Purse.KEY, "key_2"): standing((2.0, 1.9)),
            Owner(Purse.DOMAIN, "team"): standing((None, 2.0), (8.0, 2.0)),
        }
    )
    assert left == pytest.approx(
        {
            ("all", "day"): 0.6,
            ("all", "month"): 0.96,
            ("key", "day"): 0.05,
            ("key", "month"): 1.0,
            ("domain", "day"): 1.0,
            ("domain", "month"): 0.75,
        }
    )


@pytest.mark.parametrize(("limit", "spent"), [(0.0, 0.0), (1.0, 1.0), (1.0, 1.5)])
async def test_what_is_spent_or_was_never_there_leaves_nothing(limit: float, spent: float) -> None:
    assert (await least({ALL: standing((limit, spent))}))["all", "day"] == 0.0


async def test_what_the_store_does_not_tell_stays_as_it_was() -> None:
    class Budgets:
        pressed = (ALL,)

        def standing(self, owner: Owner) -> dict[str, Any]:
            return standing((10.0, 5.0))

    class Shelf:
        told: tuple[int, float | None] | None = (3, 20.0)

        async def webhooks_waiting(self) -> tuple[int, float | None]:
            if self.told is None:
                raise StoreUnavailable("the disk is full")
            return self.told

    durable = SimpleNamespace(store=Shelf(), budgets=Budgets())
    gauges = Gauges(**UNASKED | {"durable": durable})
    for told in ((3, 20.0), None):
        durable.store.told = told
        await gauges.look()
        assert gauges._webhooks == (3, 20.0)
        assert gauges._budget_left["all", "day"] == 0.5


def test_the_disk_of_the_home_is_told_as_it_was_measured_last() -> None:
    def space(path: str, free_bytes: int) -> Space:
        return Space(paths=(Path("/x"), Path(path)), free_bytes=free_bytes, size_bytes=100, free_inodes=1, inodes=9)

    def unread() -> Sequence[Space]:
        raise AssertionError("a scrape measures nothing itself")

    disk = Outside(unread, name="disk", monotonic=lambda: 0.0)
    gauges = Gauges(**UNASKED | {"home": Path("/home"), "disk": disk})
    assert gauges._disk() == {}
    disk.latest = [space("/var", 3), space("/home", 7)]
    assert gauges._disk() == {"disk_free_bytes": 7.0, "disk_size_bytes": 100.0}
    disk.latest = OSError("stale file handle")
    assert gauges._disk() == {}
