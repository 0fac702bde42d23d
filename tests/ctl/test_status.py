"""``claudectl status``: one screen, at any width, on any terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from claudectl import clean
from claudectl.screen import MARKS, WIDE_COLUMNS, Status
from claudectl.statustext import Share
from tests.ctl.conftest import Daemon, Invoke

STATUS = {
    "version": "0.1.0",
    "pid": 4242,
    "state": "ready",
    "uptime_seconds": 61,
    "profile": "dev",
    "supervisor": "systemd",
    "config": {"file": "/h/config.toml", "hash": "2508ba3fbb16", "age_seconds": 61, "changed_on_disk": False},
    "url": "http://127.0.0.1:8006",
    "home": "/h",
    "key_file": "/h/local.key",
    "upstream": "anthropic",
    "base_url": "https://api.anthropic.com",
    "credential": {"kind": "api_key", "origin": "ANTHROPIC_API_KEY"},
    "cli": {"path": "/opt/cd/lib/python3.13/site-packages/claude_agent_sdk/_bundled/claude", "version": "2.1.330"},
    "lanes": ["direct", "text"],
    "turns": {"running": 2, "limit": 4},
    "agents": {"running": 1, "spares": 2, "starts": {"spare": 1}, "sandboxed": True},
    "sessions": {"running": 0, "kept": 3},
    "workers": {"limit": 4, "live": 4, "busy": 1, "idle": 3, "starting": 0, "spares": 1},
    "queue": {"waiting": 2, "running": 1, "queued": 3},
    "starts": {"warm": 9, "spare": 1, "cold": 2},
    "checks": {
        "engine": {"status": "pass"},
        "worker_pool": {"status": "warn", "reason": "3 of 4 live"},
        "config": {"status": "pass", "hash": "2508ba3fbb16"},
    },
}


PICTURES = Path(__file__).parent / "pictures"


def picture(name: str) -> str:
    """As it was when somebody last looked at it and found it good."""
    return (PICTURES / f"{name}.txt").read_text().rstrip("\n")


def drawn(shown: RenderableType, columns: int, **options: object) -> str:
    """As a terminal shows it, without the spaces that fill lines up."""
    stream = io.StringIO()
    settings: dict[str, object] = {"color_system": None, "highlight": False, "height": 40, **options}
    Console(file=stream, width=columns, markup=False, emoji=False, **settings).print(shown)  # type: ignore[arg-type]
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


@pytest.mark.parametrize("columns", [80, 200])
def test_status_is_one_screen(columns: int) -> None:
    assert drawn(Status(STATUS), columns) == picture(f"status-{columns}")


@pytest.mark.parametrize("columns", [20, 40, 79, 119, 120, 179, 180, 400])
def test_nothing_is_cut_off_and_nothing_sticks_out_at_any_width(columns: int) -> None:
    lines = drawn(Status(STATUS), columns).splitlines()
    assert max(map(len, lines)) <= columns
    told = "".join("".join(lines).split())
    if columns < WIDE_COLUMNS:  # else what is folded stands between something else
        assert "2.1.330at/opt/cd/lib/python3.13/site-packages/claude_agent_sdk/_bundled/claude" in told
    assert "worker_pool:3of4live" in told


@pytest.mark.parametrize(
    ("agents", "said"),
    [
        (
            {"running": 1, "spares": 2, "sandboxed": True, "limits": "cgroup"},
            "1 running · 2 spares · sandboxed · limits for all processes of one",
        ),
        (
            {"running": 0, "spares": 0, "sandboxed": True, "limits": "rlimit"},
            "0 running · 0 spares · sandboxed · limits for each process",
        ),
        (
            {"running": 0, "spares": 0, "sandboxed": False, "limits": "none"},
            "0 running · 0 spares · no sandbox · no limits",
        ),
        ({"running": 0, "spares": 0, "limits": "walls"}, "0 running · 0 spares · walls"),
    ],
)
def test_it_tells_what_holds_agents(agents: dict[str, object], said: str) -> None:
    assert f"\n  agents    {said}\n" in drawn(Status(STATUS | {"agents": agents}), 100)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ({"file": "/h/log/daemon.log", "lost": 0}, "/h/log/daemon.log"),
        ({"file": None, "lost": 12}, "stderr alone · 12 lines lost"),
    ],
)
def test_it_tells_where_the_log_goes_and_what_went_nowhere(log: dict[str, object], said: str) -> None:
    assert f"\n  log         {said}\n" in drawn(Status(STATUS | {"log": log}), 100)


def test_it_names_no_file_that_is_not_there() -> None:
    shown = drawn(Status(STATUS | {"config": {"file": None, "hash": "2508ba3fbb16"}}), 100)
    assert "\n  config      (none) · 2508ba3fbb16\n" in shown


@pytest.mark.parametrize(
    ("more", "added"),
    [
        ({"changed_on_disk": True}, "changed on disk: claudectl reload"),
        ({"needs_restart": ["http.port", "store.path"]}, "in force after a restart: http.port, store.path"),
    ],
    ids=["changed on disk", "needs a restart"],
)
def test_it_tells_what_of_the_configuration_is_not_in_force(more: dict[str, object], added: str) -> None:
    config = {**STATUS["config"], **more}  # type: ignore[dict-item]
    shown = drawn(Status(STATUS | {"config": config}), 119)
    assert f"  config      /h/config.toml · 2508ba3fbb16 · 1 min 1 s old · {added}\n" in shown


def test_a_check_that_passes_in_silence_takes_no_line_and_the_worst_comes_first() -> None:
    checks = {
        "auth": {"status": "pass", "reason": "the offline model answers"},
        "worker_pool": {"status": "warn", "reason": "3 of 4 live"},
        "audit": {"status": "pass", "head": "12:abc"},
        "engine": {"status": "fail", "reason": "no credential"},
        "store": {"status": "pass"},
    }
    shown = drawn(Status({"state": "degraded", "checks": checks}), 80)
    assert shown.partition("Checks\n")[2] == (
        "  ✗ engine: no credential\n"
        "  ! worker_pool: 3 of 4 live\n"
        "  ✓ auth: the offline model answers\n"
        "  ✓ audit · store"
    )


@pytest.mark.parametrize(
    ("running", "limit", "bar"),
    [(0, 4, "────"), (1, 100, "━───"), (2, 4, "━━──"), (99, 100, "━━━─"), (4, 4, "━━━━"), (7, 4, "━━━━"), (0, 0, "")],
)
def test_the_bar_shows_something_as_something_and_only_all_as_all(running: int, limit: int, bar: str) -> None:
    assert MARKS.bar(Share(running, limit), 4).plain == bar


def test_a_terminal_without_these_signs_has_others() -> None:
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=80, color_system=None)
    with console.capture() as shown:
        console.print(Status(STATUS))
    assert "* ready" in shown.get()
    assert "########--------" in shown.get()


@pytest.mark.parametrize("missing", STATUS)
def test_it_skips_what_is_absent_or_null(missing: str) -> None:
    without = {name: value for name, value in STATUS.items() if name != missing}
    assert "None" not in drawn(Status(without), 80)
    assert "None" not in drawn(Status(STATUS | {missing: None}), 80)


@pytest.mark.parametrize("junk", [None, 7, "text", [], {}, [1], {"x": 1}, {"x": {"y": None}}, True, -1, float("nan")])
def test_nothing_unexpected_breaks_it(junk: object) -> None:
    for key, value in STATUS.items():
        drawn(Status(STATUS | {key: junk}), 80)
        for inner in value if isinstance(value, dict) else ():
            drawn(Status(STATUS | {key: {**value, inner: junk}}), 80)  # type: ignore[dict-item]


def test_names_and_reasons_can_neither_steer_the_terminal_nor_paint() -> None:
    evil = {
        "home": "/h\x1b[2J\x9b31m",
        "state": "\x1b[31mready",
        "checks": {"e\x1b[2Jx": {"status": "fail", "reason": "\x1b]0;owned\x07bad\n[red]all is well[/red]"}},
    }
    shown = drawn(Status(evil), 80)
    assert shown.replace("\n", "").isprintable()
    assert "✗ ex: bad [red]all is well[/red]" in shown


def test_in_colour_it_says_the_same() -> None:
    coloured = drawn(Status(STATUS), 80, color_system="standard", force_terminal=True)
    assert "\x1b[1;32m● ready\x1b[0m" in coloured
    plain = "\n".join(line.rstrip() for line in clean.clean(coloured).splitlines())
    assert plain == drawn(Status(STATUS), 80)


def test_a_pipe_has_80_columns_and_no_colour(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "status", STATUS)
    result = invoke("status")
    assert (result.exit_code, result.stdout) == (0, picture("status-80") + "\n")


def test_columns_says_how_wide_it_is(daemon: Daemon, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.says("GET", "status", STATUS)
    monkeypatch.setenv("COLUMNS", "200")
    assert invoke("status").stdout == picture("status-200") + "\n"
