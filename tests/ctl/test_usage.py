"""``claudectl usage``, and the budgets of ``claudectl keys create``."""

from __future__ import annotations

import json
import os
import pty
from typing import Any

import pytest

from tests.ctl.conftest import Daemon, Invoke, Spawn

NONE = {"since": "2026-11-27", "limit_usd": None, "spent_usd": 0.0}


def row(day: str, charged: float, **changes: Any) -> dict[str, Any]:
    return {
        "day": day,
        "tasks": 12,
        "input_tokens": 12_345,
        "output_tokens": 678,
        "cache_creation_input_tokens": 1000,
        "cache_read_input_tokens": 500,
        "model_calls": 30,
        "cost_usd": charged,
        "charged_usd": charged,
        "unpriced": 0,
        **changes,
    }


USAGE: dict[str, Any] = {
    "object": "usage",
    "by": "day",
    "days": 7,
    "timezone": "UTC",
    "since": "2026-11-21",
    "until": "2026-11-27",
    "data": [row("2026-11-26", 2.5), row("2026-11-27", 1.25, cost_usd=1.0, unpriced=1)],
    "total": row("", 3.75, cost_usd=3.5, unpriced=1),
    "budgets": [
        {
            "purse": "all",
            "name": "",
            "day": {"since": "2026-11-27", "limit_usd": 5.0, "spent_usd": 1.25},
            "month": NONE,
            "reserved_usd": 0.25,
        },
        {"purse": "key", "name": "key_1", "day": NONE, "month": {**NONE, "limit_usd": 0.0}, "reserved_usd": 0.0},
    ],
}


def test_usage_is_told_in_a_table_with_a_total_and_the_budgets_that_have_limits(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "usage", USAGE)
    result = invoke("usage")
    assert (result.exit_code, result.stdout) == (
        0,
        "2026-11-21 to 2026-11-27 (UTC)\n"
        "DAY         TASKS  CALLS  INPUT  CACHED  OUTPUT   COST  CHARGED\n"
        "2026-11-26     12     30  12.3k    1.5k     678   2.50     2.50\n"
        "2026-11-27     12     30  12.3k    1.5k     678  1.00+     1.25\n"
        "total          12     30  12.3k    1.5k     678  3.50+     3.75\n"
        "budget of all, day: 1.25 of 5.00 USD (25 %), 0.25 set aside\n"
        "budget of key key_1, month: 0.00 of 0.00 USD (nothing allowed)\n",
    )


def test_by_key_it_tells_the_names_and_asks_for_the_days(daemon: Daemon, invoke: Invoke) -> None:
    rows = [
        {**row("", 1.0), "key_id": "key_1", "name": "ali\x1b[2Jce"},
        {**row("", 1.0), "key_id": "key_2", "name": None},
    ]
    daemon.says("GET", "usage", {**USAGE, "by": "key", "data": rows})
    told = invoke("usage", "--by", "key", "--days", "30").stdout
    assert [line.split()[0] for line in told.splitlines()[1:4]] == ["KEY", "alice", "key_2"]
    assert daemon.last.query == "by=key&days=30"


def test_json_is_what_the_daemon_said(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "usage", USAGE)
    assert json.loads(invoke("usage", "--by", "model", "--json").stdout) == USAGE


def test_where_nothing_was_used_it_says_so(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "usage", {**USAGE, "data": [], "budgets": []})
    assert invoke("usage").stdout.splitlines()[1:] == ["nothing was used"]


@pytest.mark.parametrize("args", [["--by", "hour"], ["--days", "0"], ["--days", "367"], ["extra"]])
def test_wrong_usage_is_2_and_asks_nobody(daemon: Daemon, invoke: Invoke, args: list[str]) -> None:
    assert invoke("usage", *args).exit_code == 2
    assert not daemon.requests


def test_on_a_terminal_bars_show_where_it_went(daemon: Daemon, spawn: Spawn) -> None:
    daemon.says("GET", "usage", USAGE)
    terminal, ours = pty.openpty()
    process = spawn("--socket", str(daemon.path), "usage", stdout=ours)
    os.close(ours)
    said = b""
    while piece := _read(terminal):
        said += piece
    assert process.wait() == 0
    os.close(terminal)
    bars = [line.count("█") for line in said.decode().splitlines()[2:4]]
    assert bars == [24, 12]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed: Linux says so with an error
        return b""


def test_a_key_is_made_with_budgets_of_its_own(daemon: Daemon, invoke: Invoke) -> None:
    made = {"id": "key_1", "name": "ci", "role": "standard", "domain": "key_1", "key": "cd_x", "budget_usd_day": 5.0}
    daemon.says("POST", "keys", made, 201)
    told = invoke("keys", "create", "ci", "--budget-usd-day", "5", "--budget-usd-month", "0.5")
    assert told.exit_code == 0
    assert daemon.last.body == {"name": "ci", "budget_usd_day": 5.0, "budget_usd_month": 0.5}
    assert "5 USD a day" in told.stdout


@pytest.mark.parametrize("amount", ["-1", "nan", "much", "inf"])
def test_an_amount_that_is_none_is_wrong_usage(daemon: Daemon, invoke: Invoke, amount: str) -> None:
    assert invoke("keys", "create", "ci", "--budget-usd-day", amount).exit_code == 2
    assert not daemon.requests
