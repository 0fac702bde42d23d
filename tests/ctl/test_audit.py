"""``claudectl audit``: what it asks for, and what it makes of a chain that does not hold."""

from __future__ import annotations

import time

import pytest

from tests.ctl.conftest import Daemon, Invoke

RECORD = {
    "n": 7,
    "at": 1_790_000_000.0,
    "act": "key.created",
    "key_id": "local",
    "trust_domain": None,
    "task_id": None,
    "request_id": "req_1",
    "peer_uid": 0,
    "details": {"name": "al\u001b[31mice", "role": "full"},
}
HEAD = "7:" + "ab" * 32
HOLDS = {"ok": True, "records": 7, "head": HEAD, "pruned": 0, "broken": None, "at": None}


def test_records_are_a_table_without_what_could_steer_a_terminal(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "audit", {"object": "list", "data": [RECORD]})
    result = invoke("audit")
    assert result.exit_code == 0
    head, row = result.stdout.splitlines()
    assert head.split() == ["N", "WHEN", "ACT", "KEY", "UID", "TASK", "DETAILS"]
    assert "key.created  local  0" in row and row.endswith("name=alice role=full") and "\x1b" not in row


def test_what_is_wanted_is_sent(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "audit", {"object": "list", "data": []})
    before = time.time()
    invoke("audit", "--request", "r1", "--task", "t1")
    assert daemon.last.query == "limit=100&request=r1&task=t1"
    result = invoke("audit", "--limit", "5", "--act", "key", "--since", "1h")
    assert result.stdout == "no records\n"
    asked = dict(pair.split("=") for pair in daemon.last.query.split("&"))
    assert 0 <= float(asked.pop("since")) - before + 3600 < 60
    assert asked == {"limit": "5", "act": "key"}


def test_a_time_that_is_none_is_a_usage_error(invoke: Invoke) -> None:
    result = invoke("audit", "--since", "yesterday")
    assert result.exit_code == 2 and "--since" in result.stderr


def test_a_chain_that_holds_is_told_with_its_head(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "audit/verify", HOLDS)
    result = invoke("audit", "verify")
    assert (result.exit_code, result.stdout) == (0, f"the chain holds: 7 records\nhead {HEAD}\n")


def test_an_anchor_is_sent(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "audit/verify", HOLDS)
    invoke("audit", "verify", "--anchor", HEAD)
    assert daemon.last.query == "anchor=7%3A" + "ab" * 32


@pytest.mark.parametrize("json", [False, True])
def test_a_broken_chain_is_a_failure(daemon: Daemon, invoke: Invoke, json: bool) -> None:
    broken = {**HOLDS, "ok": False, "broken": "it was changed", "at": 3, "pruned": 2}
    daemon.says("GET", "audit/verify", broken)
    result = invoke("audit", "verify", *(["--json"] if json else []))
    assert result.exit_code == 1
    if not json:
        told = "the chain is broken: record 3: it was changed\nrecords 1 to 2 were pruned"
        assert result.stdout == f"{told}\nhead {HEAD}\n"


def test_a_chain_that_ends_too_early_names_no_record(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "audit/verify", {**HOLDS, "ok": False, "broken": "its end was cut off"})
    assert invoke("audit", "verify").stdout.startswith("the chain is broken: its end was cut off\n")
