"""What ``claudectl doctor`` finds around the daemon: each finding passes, warns and fails for what is really there."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from claude_daemon.config import Loaded, load
from claude_daemon.doctor import engine, files, installation, network
from claude_daemon.doctor.finding import Finding
from claude_daemon.engine import sandbox
from claude_daemon.store import SqliteStore

KEY = "cd_" + "x" * 43
root_alone = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away: sudo pytest")


def loaded(tmp_path: Path, **settings: str) -> Loaded:
    """``http__port="1"``: a key of the configuration."""
    environ = {f"CLAUDE_DAEMON_{key.upper()}": value for key, value in settings.items()}
    return load({}, {"HOME": str(tmp_path), **environ})


def made(tmp_path: Path) -> Path:
    """A home as a first start leaves it."""
    home = tmp_path / ".claude-daemon"
    home.mkdir(mode=0o700)
    for name, text in (("local.key", KEY), ("audit.key", "0" * 64)):
        (home / name).write_text(text)
        (home / name).chmod(0o600)
    return home


def statuses(found: Iterator[Finding]) -> list[tuple[str, str]]:
    return [(finding.name.rpartition("/")[2], finding.status) for finding in found]


async def all_of(found: AsyncIterator[Finding]) -> list[Finding]:
    return [finding async for finding in found]


# files


def test_a_home_of_ones_own_passes_and_one_that_is_not_there_yet(tmp_path: Path) -> None:
    assert statuses(files.home(loaded(tmp_path))) == [(".claude-daemon", "pass")]
    made(tmp_path)
    assert statuses(files.home(loaded(tmp_path))) == [(".claude-daemon", "pass"), ("private files", "pass")]


@pytest.mark.parametrize(("mode", "status"), [(0o755, "warn"), (0o750, "warn"), (0o770, "fail"), (0o702, "fail")])
def test_a_home_that_others_may_enter_or_write_to(tmp_path: Path, mode: int, status: str) -> None:
    made(tmp_path).chmod(mode)
    finding = next(files.home(loaded(tmp_path)))
    assert (finding.status, "chmod 700" in finding.todo) == (status, True)


def test_a_home_that_is_no_directory_fails(tmp_path: Path) -> None:
    (tmp_path / ".claude-daemon").write_text("")
    (tmp_path / "config.toml").touch()
    settings = load({"config": str(tmp_path / "config.toml")}, {"HOME": str(tmp_path)})
    assert next(files.home(settings)).reason == "it is not a directory"


@pytest.mark.parametrize("name", ["local.key", "audit.key", "daemon.db"])
@pytest.mark.parametrize(("mode", "status"), [(0o644, "warn"), (0o620, "fail")])
def test_a_private_file_that_others_may_read_or_write(tmp_path: Path, name: str, mode: int, status: str) -> None:
    home = made(tmp_path)
    (home / name).touch()
    (home / name).chmod(mode)
    assert statuses(files.home(loaded(tmp_path)))[1:] == [(name, status)]


def test_a_key_that_is_a_link_or_none_fails(tmp_path: Path) -> None:
    home = made(tmp_path)
    (home / "audit.key").unlink()
    (home / "audit.key").symlink_to(home / "local.key")
    (home / "local.key").write_text("not a key")
    assert statuses(files.home(loaded(tmp_path)))[1:] == [("audit.key", "fail"), ("local.key", "fail")]


@pytest.mark.parametrize("name", ["local.key", "audit.key"])
@pytest.mark.parametrize("content", [b"", b"not a key", b"\xff\xfe"])
def test_a_key_file_that_a_start_would_refuse_fails(tmp_path: Path, name: str, content: bytes) -> None:
    home = made(tmp_path)
    (home / name).write_bytes(content)
    assert statuses(files.home(loaded(tmp_path)))[1:] == [(name, "fail")]


def test_a_configuration_with_secrets_is_a_private_file(tmp_path: Path) -> None:
    config = made(tmp_path) / "config.toml"
    config.write_text('[webhooks]\nsecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"\n')
    config.chmod(0o644)
    status, found, _ = doctor({"HOME": str(tmp_path), "PATH": os.environ["PATH"]})
    assert (status, found[-1]["name"], found[-1]["status"]) == (0, "configuration", "fail")
    assert "chmod 600" in found[-1]["reason"] and "whsec" not in str(found)


@root_alone
def test_what_belongs_to_somebody_else_fails(tmp_path: Path) -> None:
    home = made(tmp_path)
    os.chown(home / "audit.key", 12345, -1)
    found = list(files.home(loaded(tmp_path)))
    assert [(finding.status, "belongs to uid 12345" in finding.reason) for finding in found[1:]] == [("fail", True)]


async def test_a_store_that_is_good_older_and_another_programs(tmp_path: Path) -> None:
    home = made(tmp_path)
    assert next(files.store(loaded(tmp_path))).reason == "the first start makes it"
    store = SqliteStore.open(home / "daemon.db")
    await store.close()
    assert next(files.store(loaded(tmp_path))).status == "pass"
    with closing(sqlite3.connect(home / "daemon.db")) as db:
        db.execute("PRAGMA user_version = 1")
    assert "the next start brings it to this version" in next(files.store(loaded(tmp_path))).reason
    with closing(sqlite3.connect(home / "daemon.db")) as db:
        db.execute("PRAGMA application_id = 1")
    finding = next(files.store(loaded(tmp_path)))
    assert (finding.status, "of another program" in finding.reason) == ("fail", True)


def test_a_control_socket_by_what_is_in_its_place(tmp_path: Path) -> None:
    where = Path(os.path.relpath(tmp_path))  # short enough to be bound
    path = tmp_path / "ctl.sock"
    settings = loaded(tmp_path, control__socket=str(path))

    def found() -> tuple[str, str]:
        finding = next(files.control_socket(settings))
        return finding.status, finding.reason

    assert found() == ("pass", "nobody listens yet")
    if len(os.fsencode(path)) > 100:
        pytest.skip(f"the path of temporary files is too long for a socket: {path}")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(where / "ctl.sock"))
        listening.listen()
        assert found() == ("warn", "somebody listens there")
    assert found() == ("pass", "left behind; the next start replaces it")
    path.unlink()
    path.mkdir()
    assert found() == ("fail", "something else is in its place")


def test_a_path_too_long_for_a_socket_fails(tmp_path: Path) -> None:
    home = tmp_path / ("x" * 120)
    settings = load({}, {"HOME": str(home), "CLAUDE_DAEMON_HOME": str(home / "short")}, home=tmp_path)
    assert next(files.control_socket(settings)).status == "pass"
    with pytest.raises(Exception, match="bytes"):  # the configuration says so first
        load({}, {"HOME": str(home)})


@pytest.mark.parametrize(
    ("make", "trusted", "status"),
    [
        (lambda path: path.mkdir(), False, "pass"),
        (lambda path: None, False, "fail"),
        (lambda path: path.write_text(""), False, "fail"),
        (lambda path: (path.mkdir(), path.chmod(0o777)), True, "warn"),
        (lambda path: (path.mkdir(), path.chmod(0o777)), False, "pass"),
    ],
    ids=["a directory", "nothing", "a file", "trusted and open", "open"],
)
def test_a_root_by_what_is_there(tmp_path: Path, make: Any, trusted: bool, status: str) -> None:
    root = tmp_path / "work"
    made(tmp_path).joinpath("config.toml").write_text(
        f'[[roots]]\npath = "{root}"\ntrusted = {"true" if trusted else "false"}\n'
    )
    settings = loaded(tmp_path)
    make(root)
    assert statuses(files.roots(settings)) == [("work", status)]


def test_a_root_that_holds_the_home_warns_and_none_is_said_so(tmp_path: Path) -> None:
    assert next(files.roots(loaded(tmp_path))).reason.startswith("none: ")
    made(tmp_path).joinpath("config.toml").write_text(f'[[roots]]\npath = "{tmp_path}"\n')
    assert next(files.roots(loaded(tmp_path))).status == "warn"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere: run as a user")
def test_where_nothing_can_be_written_fails(tmp_path: Path) -> None:
    made(tmp_path).chmod(0o500)
    assert next(files.home(loaded(tmp_path))).status == "fail"
    assert next(files.log_file(loaded(tmp_path))).status == "fail"
    (tmp_path / ".claude-daemon").chmod(0o700)


def test_fewer_descriptors_than_connections_warn(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert next(files.descriptors(loaded(tmp_path, http__max_connections="10"))).status == "pass"
    if hard == resource.RLIM_INFINITY:
        pytest.skip("there is no limit here")
    assert next(files.descriptors(loaded(tmp_path, http__max_connections=str(hard)))).status == "warn"


def test_the_log_and_the_disks_are_looked_at(tmp_path: Path) -> None:
    settings = loaded(tmp_path)
    assert next(files.log_file(settings)).status == "pass"
    assert next(files.disks(settings)).name.startswith("disk of ")


# network


def test_a_port_that_is_free_taken_and_nowhere(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        finding = next(network.port(loaded(tmp_path, http__port=port)))
        assert (finding.status, "ss -ltnp" in finding.todo) == ("fail", True)
    assert next(network.port(loaded(tmp_path, http__port=port))).status == "pass"
    settings = loaded(tmp_path, http__host="192.0.2.1", http__allow_plaintext="true")
    assert next(network.port(settings)).todo == "http.host: an address of this machine"


# engine


async def test_claude_code_that_is_there_missing_and_another_program(tmp_path: Path) -> None:
    (finding,) = await all_of(engine.claude_code(loaded(tmp_path)))
    assert (finding.status, finding.name.startswith("Claude Code 2.")) == ("pass", True)
    cli = tmp_path / "cli"
    (finding,) = await all_of(engine.claude_code(loaded(tmp_path, engine__cli_path=str(cli))))
    assert (finding.status, "No such file" in finding.reason) == ("fail", True)
    cli.write_text("#!/bin/sh\nexit 3\n")
    (finding,) = await all_of(engine.claude_code(loaded(tmp_path, engine__cli_path=str(cli))))
    assert (finding.status, "ermission denied" in finding.reason) == ("fail", True)
    cli.chmod(0o755)
    (finding,) = await all_of(engine.claude_code(loaded(tmp_path, engine__cli_path=str(cli))))
    assert (finding.status, "ended with status 3" in finding.reason) == ("fail", True)


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({"ANTHROPIC_API_KEY": "sk-ant-made-up"}, "pass"),
        ({"CLAUDE_CODE_OAUTH_TOKEN": "made-up"}, "warn"),
        ({}, "warn"),
        ({"CLAUDE_DAEMON_PROFILE": "prod"}, "fail"),
        ({"CLAUDE_DAEMON_ENGINE__UPSTREAM": "offline", "CLAUDE_DAEMON_PROFILE": "prod"}, "pass"),
    ],
)
async def test_a_credential_by_where_it_is_and_what_it_is_for(
    tmp_path: Path, environ: dict[str, str], status: str
) -> None:
    environ = {"HOME": str(tmp_path), **environ}
    (finding,) = await all_of(engine.credential(load({}, environ), environ))
    assert finding.status == status
    assert not any(secret in finding.line() for secret in ("sk-ant-made-up", "made-up"))


async def test_a_credential_in_a_file_that_others_may_read_warns(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sk-ant-made-up")
    environ = {"HOME": str(tmp_path), "ANTHROPIC_API_KEY_FILE": str(key)}
    for mode, expected in ((0o600, ["pass"]), (0o644, ["pass", "warn"])):
        key.chmod(mode)
        found = await all_of(engine.credential(load({}, environ), environ))
        assert [finding.status for finding in found] == expected, found


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({}, "warn"),
        ({"CLAUDE_DAEMON_PROFILE": "prod"}, "warn"),
        ({"CLAUDE_DAEMON_ENGINE__SANDBOX": "bwrap"}, "fail"),
        ({"CLAUDE_DAEMON_ENGINE__SANDBOX": "none"}, "warn"),
    ],
)
async def test_a_sandbox_that_is_missing_weighs_as_much_as_it_was_wished_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], status: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # where no bubblewrap is
    (finding,) = await all_of(engine.sandbox(load({}, {"HOME": str(tmp_path), **environ})))
    assert finding.status == status


async def test_a_sandbox_that_works_passes(tmp_path: Path) -> None:
    if (missing := await sandbox.sandbox_missing(sandbox.find_bwrap())) is not None:
        pytest.skip(missing)
    (finding,) = await all_of(engine.sandbox(loaded(tmp_path)))
    assert finding.status == "pass"


# installation


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10), "fail"), ((3, 11), "pass"), ((3, 14), "pass"), ((3, 99), "warn")]
)
def test_a_python_that_is_too_old_or_newer_than_any_tried(version: tuple[int, int], status: str) -> None:
    assert installation.python(version).status == status


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("click>=8.2", None),
        ("click<1000,>=8", None),
        ("click>=1000", "1000 is needed"),
        ("click==1.0", "== 1.0 is needed"),
        ("no-such-package>=1; sys_platform != 'win32'", "it is not installed"),
    ],
)
def test_a_package_that_is_missing_or_another_version_fails(text: str, says: str | None) -> None:
    finding = installation.requirement(text, "pip install")
    assert finding is None if says is None else finding is not None and says in finding.reason


def test_what_is_installed_here_is_as_required() -> None:
    assert [finding.status for finding in installation.packages()] == ["pass"]


# as a program


def doctor(environ: dict[str, str], *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    done = subprocess.run(
        [sys.executable, "-m", "claude_daemon.doctor", *arguments], env=environ, capture_output=True, timeout=60
    )
    return done.returncode, [orjson.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


def test_as_a_program_it_looks_at_everything_and_changes_nothing(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "CLAUDE_DAEMON_HTTP__PORT": "0"}
    status, found, said = doctor(environ, "--profile", "dev")
    assert (status, said) == (0, "")
    names = [finding["name"].split()[0] for finding in found]
    assert names == [
        "Python", "claude-daemon", "configuration", "home", "store", "log", "disk", "roots", "file", "Claude",
        "sandbox", "credential", "control", "port",
    ]  # fmt: skip
    assert not [finding for finding in found if finding["status"] == "fail"]
    assert list(tmp_path.iterdir()) == []


def test_every_fault_of_a_configuration_is_told_and_nothing_looked_at_that_depends_on_it(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "CLAUDE_DAEMON_HTTP__PROT": "1"}
    status, found, _ = doctor(environ)
    assert (status, [(one["name"], one["status"]) for one in found[2:]]) == (0, [("configuration", "fail")])
    assert "CLAUDE_DAEMON_HTTP__PORT" in found[-1]["reason"]


async def test_what_cannot_be_looked_at_is_a_finding_and_the_next_is_looked_at(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from claude_daemon.doctor.__main__ import look

    def broken() -> Iterator[Finding]:
        yield Finding(name="first", status="pass")
        raise KeyError("no such thing")

    await look("parts", broken)
    found = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["name"], one["status"]) for one in found] == [("first", "pass"), ("parts", "fail")]
    assert "KeyError" in found[1]["reason"]
    await asyncio.sleep(0)
