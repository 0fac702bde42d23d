"""What an operator does to a running daemon: reload, panic, workers, levels, connections, stacks."""

from __future__ import annotations

import json

import pytest

from claudectl.commands import connections, log_level, panic, reload, stacks, workers
from claudectl.render import coloured, colourless
from tests.ctl.conftest import Daemon, Invoke

CONFIG = {"file": "/h/config.toml", "hash": "a51d7d5202c3", "age_seconds": 0.0, "changed_on_disk": False}
CHANGED = [
    {"key": "http.port", "old": "8006", "new": "8007"},
    {"key": "log.level", "old": '"info"', "new": '"debug"'},
]
CONNECTION = {
    "id": "conn_1",
    "peer": "127.0.0.1:43234",
    "age_seconds": 61.5,
    "requests": 3,
    "state": "stream",
    "request_id": "r-1",
    "path": "/v1/messages",
    "key_id": "local",
    "unsent_bytes": 2048,
}
STACKS = {
    "tasks": [{"name": "drain", "coroutine": "Drain.run", "state": "pending", "stack": ["a.py:1 in f", "b.py:2 in g"]}],
    "threads": [{"name": "MainThread", "stack": ["c.py:3 in h"]}],
}


def test_a_reload_shows_what_changed_and_what_waits_for_a_restart(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("POST", "reload", {"changed": CHANGED, "needs_restart": ["http.port"], "config": CONFIG})
    result = invoke("reload")
    assert (result.exit_code, result.stdout) == (
        0,
        "KEY        OLD        NEW\n"
        "http.port  8006    →  8007\n"
        'log.level  "info"  →  "debug"\n'
        "in force after a restart: http.port\n"
        "configuration a51d7d5202c3\n",
    )
    assert daemon.last.body == {}


def test_a_reload_of_the_same_says_so(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("POST", "reload", {"changed": [], "needs_restart": [], "config": CONFIG})
    assert invoke("reload").stdout == "nothing has changed\nconfiguration a51d7d5202c3\n"


def test_a_bad_file_changes_nothing_and_each_fault_has_a_line(daemon: Daemon, invoke: Invoke) -> None:
    faults = [
        {"path": "http.prt", "message": "/h/config.toml: http.prt: unknown key; did you mean port?"},
        {"path": "/h/config.toml:7:3", "message": "/h/config.toml:7:3: not TOML"},
        {"path": "log.level", "message": "must be a level"},
    ]
    why = "nothing was changed: 3 faults in the configuration"
    daemon.refuses("POST", "reload", 400, "bad_configuration", why, errors=faults)
    result = invoke("reload")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "error: bad_configuration: nothing was changed: 3 faults in the configuration\n"
        "  /h/config.toml: http.prt: unknown key; did you mean port?\n"
        "  /h/config.toml:7:3: not TOML\n"
        "  log.level: must be a level\n"
    )


@pytest.mark.parametrize("flags", [[], ["--yes"]])
def test_a_panic_says_what_was_cut_and_how_to_come_back(daemon: Daemon, invoke: Invoke, flags: list[str]) -> None:
    daemon.says("POST", "panic", {"killed": ["w_1", "w_2"], "paused": True, "state": "drained"})
    result = invoke("panic", *flags)
    assert (result.exit_code, result.stdout) == (
        0,
        "drained · 2 workers killed · queue paused\n"
        "Take work again with: claudectl undrain && claudectl queue resume\n",
    )
    assert daemon.last.body == {}


@pytest.mark.parametrize(
    ("flags", "body"),
    [
        (["--workers", "8"], {"workers": 8}),
        (["--spares", "0"], {"spares": 0}),
        (["--workers", "8", "--spares", "2"], {"workers": 8, "spares": 2}),
    ],
    ids=["workers", "spares", "both"],
)
def test_workers_are_scaled_by_what_is_given(
    daemon: Daemon, invoke: Invoke, flags: list[str], body: dict[str, int]
) -> None:
    daemon.says("POST", "workers/scale", {"workers": 8, "spares": 0})
    assert invoke("workers", "scale", *flags).stdout == "8 workers · 0 spares\n"
    assert daemon.last.body == body


@pytest.mark.parametrize(("flags", "rolling"), [([], True), (["--all-at-once"], False)])
def test_all_workers_are_recycled_one_after_another_unless_told_otherwise(
    daemon: Daemon, invoke: Invoke, flags: list[str], rolling: bool
) -> None:
    daemon.says("POST", "workers/recycle", {"recycling": ["w_1", "w_2"]})
    assert invoke("workers", "recycle", *flags).stdout == "recycling w_1, w_2\n"
    assert daemon.last.body == {"rolling": rolling}
    daemon.says("POST", "workers/recycle", {"recycling": []})
    assert invoke("workers", "recycle", *flags).stdout == "no workers\n"


@pytest.mark.parametrize(("verb", "state"), [("recycle", "recycling"), ("kill", "retiring")])
def test_one_worker_is_recycled_or_killed(daemon: Daemon, invoke: Invoke, verb: str, state: str) -> None:
    daemon.says("POST", f"workers/w_1/{verb}", {"id": "w_1", "state": state})
    result = invoke("workers", verb, "w_1")
    assert (result.exit_code, result.stdout, daemon.last.body) == (0, f"w_1 {state}\n", {})


@pytest.mark.parametrize("command", [["workers", "kill"], ["workers", "recycle"], ["connections", "close"]])
def test_an_id_stays_one_part_of_the_path(daemon: Daemon, invoke: Invoke, command: list[str]) -> None:
    assert invoke(*command, "../a?b\udcff").exit_code == 1
    assert daemon.last.path.startswith(f"{command[0]}/..%2Fa%3Fb%FF")


def test_log_levels_are_shown_by_name(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "log-level", {"levels": {"claude_daemon.engine": "debug", "": "info"}})
    assert invoke("log-level").stdout == (
        "LOGGER                LEVEL\n(all)                 info\nclaude_daemon.engine  debug\n"
    )


@pytest.mark.parametrize(
    ("args", "body"),
    [
        (["debug"], {"level": "debug", "logger": ""}),
        (["debug", "--logger", "a.b"], {"level": "debug", "logger": "a.b"}),
        (["--reset", "--logger", "a.b"], {"level": None, "logger": "a.b"}),
    ],
    ids=["all", "one", "reset"],
)
def test_log_levels_are_set_and_given_back(
    daemon: Daemon, invoke: Invoke, args: list[str], body: dict[str, object]
) -> None:
    daemon.says("POST", "log-level", {"levels": {"": "info"}})
    assert invoke("log-level", *args).stdout == "LOGGER  LEVEL\n(all)   info\n"
    assert daemon.last.body == body


@pytest.mark.parametrize("command", [["connections"], ["connections", "list"]])
def test_connections_are_an_aligned_table(daemon: Daemon, invoke: Invoke, command: list[str]) -> None:
    idle = CONNECTION | {"id": "conn_12", "state": "idle", "request_id": None, "path": None, "key_id": None}
    daemon.says("GET", "connections", {"connections": [CONNECTION, idle | {"unsent_bytes": 0}]})
    assert invoke(*command).stdout == (
        "ID       PEER             STATE   AGE        REQUESTS   UNSENT  KEY    REQUEST ID  PATH\n"
        "conn_1   127.0.0.1:43234  stream  1 min 1 s         3  2.0 KiB  local  r-1         /v1/messages\n"
        "conn_12  127.0.0.1:43234  idle    1 min 1 s         3      0 B  -      -           -\n"
    )


def test_no_connections_are_said_to_be_none(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "connections", {"connections": []})
    assert invoke("connections").stdout == "no connections\n"


def test_a_connection_is_closed_by_id(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("DELETE", "connections/conn_1", {"id": "conn_1", "closed": True})
    result = invoke("connections", "close", "conn_1")
    assert (result.exit_code, result.stdout) == (0, "conn_1 closed\n")
    assert (daemon.last.method, daemon.last.body) == ("DELETE", None)


def test_stacks_have_a_block_for_each_task_and_thread(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "stacks", STACKS)
    assert invoke("stacks").stdout == (
        "task drain · Drain.run · pending\n  a.py:1 in f\n  b.py:2 in g\n\nthread MainThread\n  c.py:3 in h\n"
    )


@pytest.mark.parametrize(
    ("method", "path", "command"),
    [
        ("POST", "reload", ["reload"]),
        ("POST", "panic", ["panic"]),
        ("POST", "workers/scale", ["workers", "scale", "--workers", "1"]),
        ("POST", "workers/recycle", ["workers", "recycle"]),
        ("POST", "workers/w_1/recycle", ["workers", "recycle", "w_1"]),
        ("POST", "workers/w_1/kill", ["workers", "kill", "w_1"]),
        ("GET", "log-level", ["log-level"]),
        ("POST", "log-level", ["log-level", "debug"]),
        ("GET", "connections", ["connections"]),
        ("GET", "connections", ["connections", "list"]),
        ("DELETE", "connections/c", ["connections", "close", "c"]),
        ("GET", "stacks", ["stacks"]),
        ("POST", "stop", ["stop", "--no-wait"]),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else part,
)
def test_json_is_what_the_daemon_says_and_a_refusal_its_code(
    daemon: Daemon, invoke: Invoke, method: str, path: str, command: list[str]
) -> None:
    daemon.says(method, path, {"any": "\x9bé"})
    result = invoke(*command, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"any": "\x9bé"})
    daemon.refuses(method, path, 409, "conflict", "the daemon is stopping")
    assert invoke(*command, "--json").exit_code == 7


@pytest.mark.parametrize("junk", [None, 7, "text", [], {}, [1], [{"x": 1}], {"x": {"y": None}}])
def test_nothing_unexpected_breaks_a_rendering(junk: object) -> None:
    reload._reloaded({"changed": junk, "needs_restart": junk, "config": junk}, coloured)
    panic._cut({"killed": junk, "paused": junk, "state": junk}, coloured)
    workers._recycling({"recycling": junk}, coloured)
    workers._sizes({"workers": junk}, coloured)
    workers._one({"id": junk, "state": junk}, coloured)
    log_level._levels({"levels": junk}, coloured)
    connections._connections({"connections": junk}, coloured)
    connections._connections({"connections": [dict.fromkeys(CONNECTION, junk)]}, coloured)
    stacks._stacks({"tasks": junk, "threads": [{"name": junk, "stack": junk}]}, coloured)


def test_names_and_values_cannot_steer_the_terminal() -> None:
    evil = "a\x1b[2Jb\nc"
    change = {"key": evil, "old": evil, "new": evil}
    shown = [
        reload._reloaded({"changed": [change], "needs_restart": [evil]}, colourless),
        connections._connections({"connections": [dict.fromkeys(CONNECTION, evil)]}, colourless),
        stacks._stacks({"tasks": [{"name": evil, "coroutine": evil, "stack": [evil]}]}, colourless),
        log_level._levels({"levels": {evil: evil}}, colourless),
    ]
    assert all("\x1b" not in text and "b\nc" not in text for text in shown)
