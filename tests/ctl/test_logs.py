"""``claudectl logs``: where the log is, what of it is shown, and the story of one request."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from claudectl.errors import ControlError, Denied
from claudectl.logs import files, lines, place
from claudectl.logs.story import Story, record, told
from tests.ctl.conftest import Ctl, Daemon, Invoke

NASTY = "x\n2026-01-01 critical forged\x1b[2J\u202e"


def line(event: str, second: float = 0.0, **fields: Any) -> dict[str, Any]:
    head = {
        "ts": f"2026-01-31T12:00:{second:06.3f}Z",
        "level": "info",
        "event": event,
        "logger": "claude_daemon.daemon",
    }
    return head | fields


def written(path: Path, *some: dict[str, Any] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = [one if isinstance(one, str) else json.dumps(one) for one in some]
    path.write_text("".join(f"{one}\n" for one in encoded))
    return path


# files


def test_a_log_is_read_with_what_it_was_before_its_rotations_the_oldest_first(tmp_path: Path) -> None:
    path = written(tmp_path / "daemon.log", "now")
    older = [tmp_path / name for name in ("daemon.log.3.gz", "daemon.log-20260130", "daemon.log.1")]
    for number, one in enumerate(older):
        data = f"{one.name}\n".encode()
        one.write_bytes(gzip.compress(data) if one.suffix == ".gz" else data)
        os.utime(one, (1000 + number, 1000 + number))
    for other in ("daemon.log.old", "daemon.logs.1", "xdaemon.log.1", "daemon.log.1.zip"):
        written(tmp_path / other, "not ours")
    assert files.neighbours(path) == [*older, path]
    assert files.neighbours(path, since=1001.0) == [*older[1:], path]
    told = [raw.decode() for raw in files.lines(files.neighbours(path))]
    assert told == ["daemon.log.3.gz", "daemon.log-20260130", "daemon.log.1", "now"]


@pytest.mark.parametrize("wanted", [None, lambda raw: raw.endswith(b"7")])
@pytest.mark.parametrize("count", [0, 1, 3, 5, 9, 1000])
def test_the_last_lines_are_those_at_the_end_of_all_files(
    tmp_path: Path, count: int, wanted: Callable[[bytes], bool] | None
) -> None:
    paths = [tmp_path / "a.log.2.gz", tmp_path / "a.log.1", tmp_path / "a.log"]
    numbers = iter(range(100))
    pieces = [b"".join(b"line %d\n" % next(numbers) for _ in range(size)) for size in (50, 46, 4)]
    paths[0].write_bytes(gzip.compress(pieces[0]))
    paths[1].write_bytes(pieces[1])
    paths[2].write_bytes(pieces[2])
    every = [raw for raw in b"".join(pieces).splitlines() if wanted is None or wanted(raw)]
    assert files.last(paths, count, wanted) == (every[-count:] if count else [])


@pytest.mark.parametrize("size", [10, 1000, 70_000])
def test_lines_of_any_length_are_whole_when_read_from_the_end(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.log").write_bytes(b"".join(b"%d" % n * (size // len(b"%d" % n)) + b"\n" for n in range(20)))
    every = (tmp_path / "a.log").read_bytes().splitlines()
    for count in (1, 2, 19, 20, 21):
        assert files.last([tmp_path / "a.log"], count) == every[-count:]
    (tmp_path / "empty.log").touch()
    assert files.last([tmp_path / "empty.log"], 5) == []


class Enough(Exception):
    """The test has seen all that there is."""


def test_a_file_is_followed_over_its_rotation_and_no_line_is_missed_or_told_twice(tmp_path: Path) -> None:
    path = written(tmp_path / "a.log", "before")
    growing, found = files.Growing(path), list[bytes]()

    def add(text: str, to: Path = path) -> None:
        with to.open("a") as file:
            file.write(text)

    def rotate() -> None:
        path.rename(tmp_path / "a.log.1")

    def reopen() -> None:
        add("late\n", tmp_path / "a.log.1")
        add("new\n")

    def truncate() -> None:
        path.write_text("")

    steps: list[Callable[[], None]] = [
        lambda: add("one\ntw"),
        lambda: add("o\n"),
        rotate,
        lambda: add("still the old one\n", tmp_path / "a.log.1"),
        reopen,
        lambda: add("and on\n"),
        truncate,
        lambda: add("in its place\n"),
    ]

    def pause() -> None:
        if not steps:
            raise Enough
        steps.pop(0)()

    with pytest.raises(Enough):
        found.extend(growing.lines(pause))
    assert [raw.decode() for raw in found] == [
        "one", "two", "still the old one", "late", "new", "and on", "in its place"
    ]  # fmt: skip


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ControlError, match="No such file"):
        list(files.lines([tmp_path / "missing"]))
    (tmp_path / "a.log.1.gz").write_bytes(b"no gzip")
    with pytest.raises(ControlError, match=r"a\.log\.1\.gz cannot be read"):
        list(files.lines([tmp_path / "a.log.1.gz"]))

    def closed(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(Denied, match="use the daemon's user, or root"):
        list(files.lines([tmp_path / "a.log"]))


# lines


def test_a_line_is_shown_with_its_fields_and_nothing_in_it_can_pass_for_another_line_or_field() -> None:
    shown = lines.shown(
        line("task.settled", reason="a b=c", code=None, nasty=NASTY, list=["x", 1], trace_id="0af7", ok=True),
        coloured=False,
    )
    assert "\n" not in shown and "\x1b" not in shown and "\u202e" not in shown
    assert "task.settled" in shown and 'reason="a b=c"' in shown and 'list=["x", 1]' in shown and "ok=true" in shown
    assert "code" not in shown and "0af7" not in shown and "logger" not in shown
    assert "logger=asyncio" in lines.shown(line("library.log") | {"logger": "asyncio"}, coloured=False)


def test_a_level_has_its_colour_and_a_traceback_stands_below_behind_a_bar() -> None:
    exception = {
        "type": "ValueError",
        "message": NASTY,
        "stack": ["f.py:1 in main"],
        "cause": {"type": "KeyError", "message": "k", "stack": []},
        "exceptions": [{"type": "OSError", "message": "o", "stack": []}],
    }
    shown = lines.shown(line("task.broken", level="error", exception=exception), coloured=True)
    first, *rest = shown.split("\n")
    assert "\x1b[31merror" in first
    assert [one.strip() for one in rest] == [
        r"| ValueError: x\n2026-01-01 critical forged\x1b[2J\u202e",
        "|   f.py:1 in main",
        "| because of KeyError: k",
        "| including OSError: o",
    ]


@pytest.mark.parametrize("raw", [b"", b"text", b"{", b"[1]", b'{"a": 1}', b"\xff{}", b'{"event": 1'])
def test_what_is_no_line_of_ours_is_none(raw: bytes) -> None:
    assert lines.parsed(raw) is None


def test_levels_are_ordered_and_an_unknown_one_is_below_all() -> None:
    found = {level: lines.severe({"level": level}, "warning") for level in (*lines.LEVELS, "odd", None)}
    assert found == {"debug": False, "info": False, "warning": True, "error": True, "critical": True} | {
        "odd": False,
        None: False,
    }
    assert lines.severe({}, None)


# stories

CHAT = [
    line("worker.ready", 1, worker_id="w1", pid=7),
    line("task.settled", 8, request_id="other", key_id="k", task_id="t0", worker_id="w1"),
    line("model_call", 11, request_id="r1", key_id="k1", task_id="t1", worker_id="w1", seconds=0.5),
    line("task.settled", 11.1, request_id="r1", key_id="k1", task_id="t1", worker_id="w1", lane="text"),
    line("http.access", 11.2, request_id="r1", key_id="k1", task_id="t1", worker_id="w1", seconds=1.2),
    line("http.access", 12, request_id="r10", key_id="k1"),
    line("webhook.delivered", 13, task_id="t1"),
    line("worker.ready", 14, worker_id="w2"),
    line("http.access", 15, request_id="poll", key_id="k1", task_id="t1"),
    line("worker.retiring", 20, worker_id="w1"),
    line("daemon.stopped", 30),
]


def story(some: list[dict[str, Any]], request: str | None, task: str | None = None) -> list[dict[str, Any]]:
    picked = Story(request, task)
    encoded = [json.dumps(one).encode() for one in some]
    for raw in encoded:
        if picked.may_be(raw):
            picked.learn(json.loads(raw))
    return [one for raw in encoded if picked.may_be(raw) and picked.wants(one := json.loads(raw))]


def test_a_requests_story_is_its_own_lines_its_tasks_and_its_workers() -> None:
    assert story(CHAT, "r1") == [CHAT[n] for n in (0, 2, 3, 4, 6, 9)]


def test_a_tasks_story_has_whoever_asked_about_it_too() -> None:
    assert story(CHAT, None, "t1") == [CHAT[n] for n in (0, 2, 3, 4, 6, 8, 9)]
    assert story(CHAT, "r1", "t1") == [CHAT[n] for n in (0, 2, 3, 4, 6, 9)]


def test_a_story_begins_with_what_began_first_and_says_where_each_line_is_from() -> None:
    audit = record({"n": 5, "at": 1769860811.15, "act": "chat.ended", "key_id": "k1", "task_id": "t1", "details": {}})
    heading, *rest = told([*story(CHAT, "r1"), audit], coloured=False)
    assert heading == "key k1 · request r1 · task t1 · lane text"
    parts = [tuple(one.split()[3:5]) for one in rest]
    assert parts == [
        ("worker", "worker.ready"),
        ("edge", "http.access"),
        ("broker", "model_call"),
        ("task", "task.settled"),
        ("audit", "audit"),
        ("task", "webhook.delivered"),
        ("worker", "worker.retiring"),
    ]
    assert "act=chat.ended" in rest[4] and "r1" not in "".join(rest)


def test_what_begins_within_one_millisecond_is_told_in_its_order() -> None:
    call = line("model_call", 0, request_id="r1", seconds=0.0012) | {"ts": "2026-01-31T12:00:11.001900Z"}
    edge = line("http.access", 0, request_id="r1", seconds=0.002) | {"ts": "2026-01-31T12:00:11.002100Z"}
    assert [one.split()[4] for one in list(told([call, edge], coloured=False))[1:]] == ["http.access", "model_call"]


def test_two_clients_that_chose_the_same_request_id_are_told_apart_by_their_keys() -> None:
    some = [
        line("task.settled", 1, request_id="r1", key_id="k1", task_id="t1"),
        line("task.settled", 2, request_id="r1", key_id="k2", task_id="t2"),
        line("http.access", 3, request_id="r1", status=401),
        line("webhook.failed", 4, task_id="t2"),
        line("task.settled", 5, request_id="r1", key_id="k2", task_id="t3"),
    ]
    found = list(told(story(some, "r1"), coloured=False))
    assert [one for one in found if " · " in one] == [
        "key k1 · request r1 · task t1",
        "key k2 · request r1 · 2 tasks",
        "no key · request r1",
    ]
    second = found[found.index("key k2 · request r1 · 2 tasks") + 1 :][:3]
    assert [one.split("task_id=")[1] for one in second] == ["t2", "t2", "t3"]


# the command


@pytest.fixture
def log(daemon: Daemon, tmp_path: Path) -> Path:
    """A log that the stand-in says is its own."""
    path = written(tmp_path / "log" / "daemon.log", *CHAT, line("odd", 40, level="error"), "not ours")
    daemon.says("GET", "status", {"log": {"file": str(path)}, "supervisor": "none"})
    daemon.says("GET", "audit", {"object": "list", "data": []})
    return path


def events(output: str) -> list[str]:
    return [json.loads(one).get("event", "raw") for one in output.splitlines()]


def test_the_last_hundred_lines_are_shown(log: Path, invoke: Invoke) -> None:
    written(log, *(line("e", number=n) for n in range(150)))
    shown = invoke("logs").stdout.splitlines()
    assert (len(shown), shown[0].endswith("number=50"), shown[-1].endswith("number=149")) == (100, True, True)
    assert len(invoke("logs", "-n", "7").stdout.splitlines()) == 7
    assert invoke("logs", "-n", "0").stdout == ""


def test_levels_ages_and_json_choose_among_them(log: Path, invoke: Invoke) -> None:
    assert events(invoke("logs", "--json").stdout)[-2:] == ["odd", "raw"]
    assert events(invoke("logs", "--level", "warning", "--json").stdout) == ["odd"]
    since = invoke("logs", "--since", "2026-01-31T12:00:15Z", "--level", "info", "--json")
    assert events(since.stdout) == ["http.access", "worker.retiring", "daemon.stopped", "odd"]
    assert invoke("logs", "--since", "yesterday").exit_code == 2
    assert invoke("logs", "--level", "loud").exit_code == 2
    assert invoke("logs", "--request", "a b").exit_code == 2


def test_a_request_is_told_with_its_audit(log: Path, daemon: Daemon, invoke: Invoke) -> None:
    kept = {"n": 5, "at": 1769860811.15, "act": "chat.ended", "key_id": "k1", "task_id": "t1", "request_id": "r1"}
    daemon.says("GET", "audit", {"object": "list", "data": [{**kept, "details": {"state": "succeeded"}}]})
    shown = invoke("logs", "--request", "r1")
    assert shown.exit_code == 0
    assert daemon.last.query == "limit=1000&request=r1"
    assert "act=chat.ended" in shown.stdout and "state=succeeded" in shown.stdout
    found = [json.loads(one) for one in invoke("logs", "--request", "r1", "--json").stdout.splitlines()]
    assert (found[-1]["event"], found[-1]["ts"]) == ("audit", "2026-01-31T12:00:11.150000+00:00")
    assert invoke("logs", "--task", "t1").exit_code == 0
    assert daemon.last.query == "limit=1000&task=t1"


def test_nothing_of_a_request_is_an_error(log: Path, invoke: Invoke) -> None:
    found = invoke("logs", "--request", "nobodys")
    assert (found.exit_code, found.stderr) == (1, "error: the log has nothing of nobodys\n")


def test_a_copy_of_a_log_is_read_from_anywhere(tmp_path: Path, daemon: Daemon, invoke: Invoke) -> None:
    copy = written(tmp_path / "copied", line("there"))
    assert "there" in invoke("logs", "--file", str(copy)).stdout
    assert daemon.requests == []


def test_a_daemon_that_has_no_file_and_no_journal_has_its_starters_stderr(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "status", {"log": {"file": None}, "supervisor": "none"})
    found = invoke("logs")
    assert found.exit_code == 1 and "writes to its stderr alone" in found.stderr


def test_a_daemon_that_is_down_has_left_its_log(ctl: Ctl, environ: dict[str, str], short_dir: Path) -> None:
    home = Path(environ["HOME"]) / ".claude-daemon"
    written(home / "log" / "daemon.log", *CHAT)
    shown = ctl("logs", "--request", "r1", "--json")
    assert (shown.code, events(shown.out)[0], len(events(shown.out))) == (0, "worker.ready", 6)
    assert "no daemon answers" in shown.err
    elsewhere = short_dir / "elsewhere"
    written(elsewhere / "mine.log", line("mine"))
    (elsewhere / "config.toml").write_text('[log]\nfile = "mine.log"\n')
    assert events(ctl("logs", "--json", env={"CLAUDE_DAEMON_HOME": str(elsewhere)}).out) == ["mine"]
    lost = ctl("logs", env={"CLAUDE_DAEMON_HOME": str(short_dir / "nowhere")})
    assert lost.code == 4
    assert lost.err.splitlines() == [
        "error: claude-daemon is not running: no control socket answers; and no log is found, looked at:",
        f"  {short_dir}/nowhere/log/daemon.log",
    ]


def test_places_are_those_of_the_configuration(tmp_path: Path) -> None:
    home, user = tmp_path / "home", str(tmp_path)
    home.mkdir()
    environ = {"HOME": user, "CLAUDE_DAEMON_HOME": str(home)}
    for named, expected in (
        ('"log/x.log"', home / "log" / "x.log"),
        ('"~/x.log"', tmp_path / "x.log"),
        ('"/var/x.log"', Path("/var/x.log")),
        ('"none"', None),
        ("no toml", home / "log" / "daemon.log"),
    ):
        (home / "config.toml").write_text(f"[log]\nfile = {named}\n")
        assert place.guessed(None, environ)[1] == ([] if expected is None else [expected])
    environ["CLAUDE_DAEMON_LOG__FILE"] = "other.log"
    assert place.guessed(None, environ)[1] == [home / "other.log"]
    assert place.guessed("/h/run/ctl.sock", environ)[1] == [Path("/h/log/daemon.log")]
    assert place.guessed("/run/claude-daemon-8007/ctl.sock", {})[1] == [Path("/var/log/claude-daemon-8007/daemon.log")]


def test_the_journal_is_asked_where_the_daemon_writes_to_it_alone(
    daemon: Daemon, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a journalctl that says what it was asked, and then what a journal holds."""
    program = tmp_path / "bin" / "journalctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {tmp_path}/journal\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    written(tmp_path / "journal", *CHAT, "Started claude-daemon.service")
    daemon.says("GET", "status", {"log": {"file": None}, "supervisor": "systemd"})
    daemon.says("GET", "audit", {"object": "list", "data": []})
    assert events(invoke("logs", "--json").stdout)[-2:] == ["daemon.stopped", "raw"]
    assert "--output=cat" in (asked := (tmp_path / "asked").read_text()) and "--lines=100" in asked
    assert len(events(invoke("logs", "--request", "r1", "--json").stdout)) == 6
    assert events(invoke("logs", "--level", "info", "-n", "2", "--json").stdout) == [
        "worker.retiring",
        "daemon.stopped",
    ]
    invoke("logs", "--since", "2026-01-31T12:00:00Z")
    assert (tmp_path / "asked").read_text().splitlines()[-1].endswith("--since=@1769860800")
    followed = invoke("logs", "-f", "-n", "0", "--json")
    assert len(events(followed.stdout)) == len(CHAT) + 1
    program.write_text("#!/bin/sh\necho 'No journal files were found.' >&2\nexit 1\n")
    failed = invoke("logs")
    assert (failed.exit_code, failed.stderr) == (1, "error: journalctl failed: No journal files were found.\n")


def test_following_ends_with_its_timeout(log: Path, invoke: Invoke) -> None:
    began = time.monotonic()
    found = invoke("--timeout", "0.3", "logs", "-f", "-n", "1", "--json")
    assert (found.exit_code, events(found.stdout)) == (124, ["raw"])
    assert time.monotonic() - began >= 0.3


def test_what_is_written_while_it_is_followed_is_told(log: Path, spawn: Any, daemon: Daemon) -> None:
    process = spawn("--socket", str(daemon.path), "logs", "-f", "--request", "r1", "--json")
    shown = [json.loads(process.stdout.readline()) for _ in range(6)]
    assert shown[-1]["event"] == "worker.retiring"
    with log.open("a") as file:
        for one in (line("task.settled", request_id="r2"), line("webhook.delivered", task_id="t1")):
            file.write(json.dumps(one) + "\n")
    assert json.loads(process.stdout.readline())["event"] == "webhook.delivered"
