"""``claudectl keys``: what it sends, shows, writes to a file, and never prints."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.ctl.conftest import PATIENCE_SECONDS, Ctl, Daemon, Invoke

SECRET = "cd_" + "A" * 43
MADE = {"id": "key_1", "name": "alice", "role": "standard", "domain": "key_1", "expires_at": None, "key": SECRET}


@pytest.fixture
def made(daemon: Daemon) -> Daemon:
    daemon.says("POST", "keys", MADE, 201)
    return daemon


def test_a_new_key_is_shown_with_a_word_of_caution(made: Daemon, invoke: Invoke) -> None:
    result = invoke("keys", "create", "alice")
    assert (result.exit_code, result.stdout) == (
        0,
        f"alice · key_1 · role standard · domain key_1\n{SECRET}\nKeep it: it is not shown again.\n",
    )
    assert made.last.body == {"name": "alice"}


def test_quietly_it_is_the_key_alone(made: Daemon, invoke: Invoke) -> None:
    assert invoke("keys", "create", "alice", "-q").stdout == f"{SECRET}\n"


def test_as_json_it_is_what_the_daemon_said(made: Daemon, invoke: Invoke) -> None:
    assert json.loads(invoke("keys", "create", "alice", "--json").stdout) == MADE


def test_role_domain_and_end_are_sent(made: Daemon, invoke: Invoke) -> None:
    before = time.time()
    invoke("keys", "create", "alice", "--role", "readonly", "--domain", "team", "--expires", "30d")
    body = made.last.body
    assert 0 <= body.pop("expires") - before - 30 * 86_400 < 60
    assert body == {"name": "alice", "role": "readonly", "domain": "team"}


def test_a_date_is_an_end_too(made: Daemon, invoke: Invoke) -> None:
    invoke("keys", "create", "alice", "--expires", "2100-01-01T00:00:00Z")
    assert made.last.body["expires"] == 4_102_444_800


def test_with_whom_it_shares_is_shown(daemon: Daemon, invoke: Invoke) -> None:
    names = ["bob", "b\x1b[2J", *(f"n{number}" for number in range(9))]
    daemon.says("POST", "keys", {**MADE, "domain": "team", "shares_with": names}, 201)
    shown = invoke("keys", "create", "alice", "--domain", "team").stdout
    assert "\nshares warm processes with bob, b, n0, n1, n2, n3, n4, n5, n6, n7 and 1 more\n" in shown


def test_an_end_is_shown(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("POST", "keys", {**MADE, "expires_at": 4_102_444_800.0}, 201)
    assert " · until 2" in invoke("keys", "create", "alice", "--expires", "1d").stdout


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_a_saved_key_is_in_a_file_for_its_owner_and_not_on_the_screen(
    made: Daemon, invoke: Invoke, tmp_path: Path, flags: list[str]
) -> None:
    file = tmp_path / "alice.key"
    before = os.umask(0)
    try:
        result = invoke("keys", "create", "alice", "--save", str(file), *flags)
    finally:
        os.umask(before)
    assert result.exit_code == 0 and SECRET not in result.output and str(file) in result.stdout
    assert file.read_text() == f"{SECRET}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("link", [False, True], ids=["file", "dangling link"])
def test_a_file_that_is_there_stays_and_no_key_is_made(
    made: Daemon, invoke: Invoke, tmp_path: Path, link: bool
) -> None:
    file = tmp_path / "alice.key"
    if link:
        file.symlink_to(tmp_path / "elsewhere")
    else:
        file.write_text("mine")
    result = invoke("keys", "create", "alice", "--save", str(file))
    assert (result.exit_code, result.stderr) == (7, f"error: {file} is there already\n")
    assert not made.requests and not (tmp_path / "elsewhere").exists()


def test_a_file_that_cannot_be_made_makes_no_key(made: Daemon, invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("keys", "create", "alice", "--save", str(tmp_path / "none" / "alice.key"))
    assert result.exit_code == 1 and "No such file or directory" in result.stderr
    assert not made.requests


@pytest.mark.parametrize(
    ("answer", "code"),
    [({"status": 409, "code": "conflict"}, 7), ({"status": 400, "code": "invalid_request"}, 1)],
    ids=["conflict", "invalid"],
)
def test_a_refusal_leaves_no_file(
    daemon: Daemon, invoke: Invoke, tmp_path: Path, answer: dict[str, Any], code: int
) -> None:
    daemon.refuses("POST", "keys", answer["status"], answer["code"], "there is a key named alice already")
    file = tmp_path / "alice.key"
    result = invoke("keys", "create", "alice", "--save", str(file))
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == f"error: {answer['code']}: there is a key named alice already\n"
    assert not file.exists()


def test_a_key_that_could_not_be_written_is_told_by_its_id(
    made: Daemon, environ: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "alice.key"
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0));"
    argv = [sys.executable, "-c", f"{limited}from claudectl.main import main; main()", "--socket", str(made.path)]
    done = subprocess.run(
        [*argv, "keys", "create", "alice", "--save", str(file)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (done.returncode, done.stdout) == (1, "")
    said = done.stderr.splitlines()[0]  # coverage, which cannot write either, complains after it
    assert said == f"error: {file}: File too large; the key was made and is lost: key_1"
    assert not file.exists()


@pytest.mark.parametrize("key", [None, 7, "a\x1b[2J", "\u00fc"])
@pytest.mark.parametrize("flags", [[], ["-q"], ["--save"]], ids=["text", "quiet", "save"])
def test_an_answer_without_a_key_is_no_answer(
    daemon: Daemon, invoke: Invoke, tmp_path: Path, key: object, flags: list[str]
) -> None:
    daemon.says("POST", "keys", {**MADE, "key": key}, 201)
    file = tmp_path / "alice.key"
    flags = [*flags, str(file)] if flags == ["--save"] else flags
    result = invoke("keys", "create", "alice", *flags)
    assert (result.exit_code, result.stdout) == (6, "") and not file.exists()


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["create"],
        ["create", "a", "b"],
        ["create", "a", "--expires", "soon"],
        ["create", "a", "-q", "--json"],
        ["create", "a", "-q", "--save", "x"],
        ["list", "extra"],
        ["rotate"],
        ["rotate", "a", "--overlap", "soon"],
        ["rotate", "a", "-q", "--json"],
        ["rotate", "a", "-q", "--save", "x"],
        ["suspend"],
        ["resume", "a", "b"],
        ["revoke"],
    ],
)
def test_wrong_usage_is_2_and_asks_nobody(daemon: Daemon, invoke: Invoke, args: list[str]) -> None:
    assert invoke("keys", *args).exit_code == 2
    assert not daemon.requests


def test_keys_are_listed(daemon: Daemon, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    alice = {"id": "key_1", "name": "alice", "state": "good", "role": "standard", "domain": "key_1"}
    other = {"id": "key_2", "name": "b\x1b[2J", "state": "suspended", "role": "full", "domain": "team"}
    rows = [alice | {"created_at": 86_400.0}, other | {"created_at": 0, "used_at": 60.0, "expires_at": 86_400.5}]
    daemon.says("GET", "keys", {"keys": rows})
    result = invoke("keys", "list")
    assert result.exit_code == 0
    times = [f"1970-01-{at} UTC" for at in ("01 00:00:00", "01 00:01:00", "02 00:00:00")]
    assert [re.split("  +", line) for line in result.stdout.splitlines()] == [
        ["NAME", "ID", "STATE", "ROLE", "DOMAIN", "CREATED", "USED", "EXPIRES"],
        ["alice", "key_1", "good", "standard", "key_1", "1970-01-02 00:00:00 UTC", "-", "-"],
        ["b", "key_2", "suspended", "full", "team", *times],
    ]
    assert json.loads(invoke("keys", "list", "--json").stdout) == {"keys": rows}
    invoke("keys", "list", "--all")
    assert (daemon.last.path, daemon.last.query) == ("keys", "all=1")
    monkeypatch.undo()
    time.tzset()


def test_a_new_secret_is_shown_once_with_the_end_of_the_old_one(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("POST", "keys/alice/rotate", {**MADE, "previous_until": 4_102_444_800.0})
    shown = invoke("keys", "rotate", "alice", "--overlap", "1d").stdout
    assert "\nthe old one is good until 2" in shown and shown.endswith(f"{SECRET}\nKeep it: it is not shown again.\n")
    assert daemon.last.body == {"overlap_s": 86_400}
    assert invoke("keys", "rotate", "alice", "-q").stdout == f"{SECRET}\n"
    assert daemon.last.body == {}
    daemon.says("POST", "keys/alice/rotate", {**MADE, "previous_until": time.time()})
    assert "\nthe old one is good no more\n" in invoke("keys", "rotate", "alice").stdout


def test_a_new_secret_is_saved_like_a_new_key(daemon: Daemon, invoke: Invoke, tmp_path: Path) -> None:
    daemon.says("POST", "keys/alice/rotate", MADE)
    file = tmp_path / "alice.key"
    result = invoke("keys", "rotate", "alice", "--save", str(file))
    assert result.exit_code == 0 and SECRET not in result.output and file.read_text() == f"{SECRET}\n"
    before = len(daemon.requests)
    assert invoke("keys", "rotate", "alice", "--save", str(file)).exit_code == 7
    assert len(daemon.requests) == before, "nothing is rotated where the secret has nowhere to go"


@pytest.mark.parametrize(("verb", "done"), [("suspend", "suspended"), ("resume", "resumed"), ("revoke", "revoked")])
def test_a_key_is_changed_by_its_name(daemon: Daemon, invoke: Invoke, verb: str, done: str) -> None:
    daemon.says("POST", f"keys/alice/{verb}", {"id": "key_1", "name": "alice"})
    result = invoke("keys", verb, "alice")
    assert (result.exit_code, result.stdout) == (0, f"alice · key_1 · {done}\n")


@pytest.mark.parametrize(
    ("number", "told"), [(0, ""), (1, " · 1 task cancelled"), (7, " · 7 tasks cancelled"), ("x", "")]
)
def test_how_many_tasks_went_with_a_key_is_told(daemon: Daemon, invoke: Invoke, number: object, told: str) -> None:
    daemon.says("POST", "keys/alice/revoke", {"id": "key_1", "name": "alice", "tasks_cancelled": number})
    assert invoke("keys", "revoke", "alice", "--yes").stdout == f"alice · key_1 · revoked{told}\n"


def test_a_key_that_is_not_there_is_told(daemon: Daemon, invoke: Invoke) -> None:
    daemon.refuses("POST", "keys/bob/revoke", 404, "not_found", "There is no such key.")
    result = invoke("keys", "revoke", "bob")
    assert result.exit_code == 1 and result.stderr == "error: not_found: There is no such key.\n"


def test_no_keys_are_said_to_be_none(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "keys", {"keys": []})
    assert invoke("keys", "list").stdout == "no keys\n"


def test_as_a_process_the_key_goes_to_stdout_alone(daemon: Daemon, ctl: Ctl) -> None:
    daemon.says("POST", "keys", MADE, 201)
    ended = ctl("--socket", str(daemon.path), "keys", "create", "alice", "-q")
    assert (ended.code, ended.out, ended.err) == (0, f"{SECRET}\n", "")
