"""The daemon's answers as text."""

from __future__ import annotations

import doctest

import pytest

from claude_daemon.core.lifecycle import DaemonState
from claudectl import clean, client, render
from claudectl.commands.health import TAKES_NO_WORK
from claudectl.render import coloured, colourless, duration

HEALTH = {
    "status": "warn",
    "state": "degraded",
    "version": "0.1.0",
    "uptime_seconds": 3725.2,
    "checks": {"engine": {"status": "pass"}, "worker_pool": {"status": "warn", "reason": "3 of 4 live"}},
}

WORKERS = [
    {
        "id": "w_1",
        "pid": 12,
        "state": "busy",
        "lane": "text",
        "bound": True,
        "turns": 12,
        "age_seconds": 360.2,
        "rss_mb": 210.5,
        "model": "sonnet",
        "start": "warm",
        "task_id": "task_1",
    },
    {
        "id": "w_10",
        "pid": 12222,
        "state": "idle",
        "lane": "session",
        "session_id": "sess_1",
        "bound": False,
        "turns": 0,
        "age_seconds": 3,
    },
]


@pytest.mark.parametrize("module", [clean, client, render], ids=lambda module: module.__name__)
def test_the_examples_in_the_docstrings_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_health_has_a_line_for_each_check_with_its_reason() -> None:
    assert render.health(HEALTH, colourless) == (
        "warn · degraded · up 1 h 2 min · version 0.1.0\n  engine       pass\n  worker_pool  warn  3 of 4 live"
    )


@pytest.mark.parametrize(
    ("more", "added"),
    [
        ({"changed_on_disk": True}, "changed on disk: claudectl reload"),
        ({"needs_restart": ["http.port", "store.path"]}, "in force after a restart: http.port, store.path"),
    ],
    ids=["changed on disk", "needs a restart"],
)
def test_health_tells_what_of_the_configuration_is_not_in_force(more: dict[str, object], added: str) -> None:
    said = f"/h/config.toml · 2508ba3fbb16 · 1 min 1 s old · {added}"
    config = {"file": "/h/config.toml", "hash": "2508ba3fbb16", "age_seconds": 61, "changed_on_disk": False, **more}
    check = {"status": "warn", "reason": "/h/config.toml has changed", **config}
    shown = render.health(HEALTH | {"supervisor": "systemd", "checks": {"config": check}}, colourless)
    assert shown == f"warn · degraded · up 1 h 2 min · version 0.1.0 · supervisor systemd\n  config  warn  {said}"


def test_workers_are_an_aligned_table() -> None:
    assert render.workers({"workers": WORKERS}, colourless) == (
        "ID      PID  STATE  LANE     BOUND  TURNS  AGE    RSS MB  MODEL   START  TASK    SESSION\n"
        "w_1      12  busy   text     yes       12  6 min   210.5  sonnet  warm   task_1  -\n"
        "w_10  12222  idle   session  no         0  3 s         -  -       -      -       sess_1"
    )


@pytest.mark.parametrize("junk", [None, 7, "text", [], {}, [1], {"x": 1}, {"x": {"y": None}}])
def test_nothing_unexpected_breaks_a_rendering(junk: object) -> None:
    for key in HEALTH:
        render.health(HEALTH | {key: junk}, coloured)
    render.workers({"workers": junk}, coloured)
    render.workers({"workers": [junk, WORKERS[0] | {"id": junk, "age_seconds": junk}]}, coloured)
    render.ready({"status": junk, "state": junk, "reason": junk}, coloured)
    render.drain({"state": junk, "running": junk, "remaining_s": junk})


def test_an_empty_answer_still_renders() -> None:
    assert render.health({}, colourless) == "-"
    assert render.workers({}, colourless) == "no workers"


def test_colour_marks_states_and_leaves_the_alignment_alone() -> None:
    shown = render.health(HEALTH, coloured)
    assert "\x1b[33mwarn\x1b[0m" in shown
    assert clean.clean(shown) == render.health(HEALTH, colourless)


def test_reasons_and_names_cannot_steer_the_terminal() -> None:
    evil = {"checks": {"e\x1b[2Jx": {"status": "fail", "reason": "\x1b]0;owned\x07bad\nall is well"}}}
    assert render.health(evil, colourless) == "-\n  ex  fail  bad all is well"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (86_400, "1 d"), (None, "-")])
def test_durations_read_as_people_say_them(seconds: object, text: str) -> None:
    assert duration(seconds) == text


def test_a_drain_is_one_line() -> None:
    line = {"state": "draining", "running": 2, "queued": 1, "connections": 3, "notices": 4, "remaining_s": 57.6}
    assert render.drain(line) == "draining · 2 running · 1 queued · 3 connections · 4 notices · 57 s left"


def test_states_without_work_are_states_of_the_daemon() -> None:
    assert {DaemonState(name) for name in TAKES_NO_WORK}
