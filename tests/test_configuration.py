"""What a reload changes, what waits for a restart, and whether the file has more to say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.config import Loaded, load
from claude_daemon.config.changes import FIXED, FIXED_PRESENCE, UNSET, changes, needs_restart
from claude_daemon.config.digests import FileWatch, file_digest
from claude_daemon.configuration import Configuration
from claude_daemon.core.lifecycle import Check
from claude_daemon.layers.tree import dotted, leaves

KEY = "sk-ant-api03-" + "k" * 20


def loaded(home: Path, toml: str = "", **environ: str) -> Loaded:
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(toml)
    (home / "config.toml").chmod(0o600)
    return load({}, {"HOME": str(home), "CLAUDE_DAEMON_HOME": str(home), **environ})


def test_equal_configurations_have_no_changes(tmp_path: Path) -> None:
    assert changes(loaded(tmp_path), loaded(tmp_path, "# only a comment\n")) == []


@pytest.mark.parametrize(
    ("toml", "key", "old", "new"),
    [
        ("[engine]\nworkers = 7\n", "engine.workers", "4", "7"),
        ('[log]\nlevel = "debug"\n', "log.level", '"info"', '"debug"'),
        ('[engine.models]\nfast = "claude-haiku-5-5"\n', "engine.models.fast", UNSET, '"claude-haiku-5-5"'),
        ('[[roots]]\npath = "/srv/a"\n', "roots", "[]", '[{path = "/srv/a", trusted = false}]'),
    ],
)
def test_a_change_tells_the_value_as_it_was_and_is(tmp_path: Path, toml: str, key: str, old: str, new: str) -> None:
    (change,) = changes(loaded(tmp_path), loaded(tmp_path, toml))
    assert (change.key, change.old, change.new) == (key, old, new)


def test_of_a_table_that_was_empty_or_becomes_so_what_it_has_is_told(tmp_path: Path) -> None:
    empty, role = loaded(tmp_path), loaded(tmp_path, '[roles.mine]\ntools = ["Read"]\n')
    there = changes(empty, role)
    assert {change.key.rpartition(".")[0] for change in there} == {"roles.mine"}
    assert {change.old for change in there} == {UNSET}
    assert [(change.key, change.new) for change in changes(role, empty)] == [(change.key, UNSET) for change in there]


def test_a_rotated_secret_is_a_change_that_shows_nothing_of_it(tmp_path: Path) -> None:
    before = loaded(tmp_path, '[webhooks]\nsecret = "whsec_AAAAAAAAAAAAAAAA"\n', ANTHROPIC_API_KEY=KEY)
    after = loaded(tmp_path, '[webhooks]\nsecret = "whsec_BBBBBBBBBBBBBBBB"\n', ANTHROPIC_API_KEY=KEY + "2")
    found = changes(before, after)
    assert [change.key for change in found] == ["webhooks.secret", "credential"]
    assert [change.new for change in found] == ["*** (another)", "api_key *** (another)"]
    assert needs_restart(before, after) == []


def test_every_key_that_is_fixed_exists() -> None:
    known = {dotted(path) for path, _ in leaves(load({}, {"HOME": "/nonexistent"}).settings)}
    assert known >= FIXED | FIXED_PRESENCE


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "[http]\nport = 9000\n", ["http.port"]),
        ("", "[http]\nmax_body_bytes = 9000\n", []),
        ("", '[webhooks]\nsecret = "whsec_AAAAAAAAAAAAAAAA"\n', ["webhooks.secret"]),
        ("", '[redis]\nurl = "redis://localhost"\n', ["redis.url"]),
        ('[redis]\nurl = "redis://localhost"\n', '[redis]\nurl = "redis://localhost:7000"\n', []),
        ('[log]\nfile = "none"\n', "", ["log.file"]),
    ],
)
def test_what_is_bound_or_opened_at_the_start_waits_for_a_restart(
    tmp_path: Path, before: str, after: str, expected: list[str]
) -> None:
    assert needs_restart(loaded(tmp_path, before), loaded(tmp_path, after)) == expected


@pytest.mark.parametrize(
    ("before", "after", "waits"),
    [
        ({"ANTHROPIC_API_KEY": KEY}, {"ANTHROPIC_AUTH_TOKEN": KEY}, False),
        ({"ANTHROPIC_API_KEY": KEY}, {"CLAUDE_CODE_OAUTH_TOKEN": KEY}, True),
        ({"CLAUDE_CODE_OAUTH_TOKEN": KEY}, {"CLAUDE_CODE_OAUTH_TOKEN": KEY + "2"}, False),
        ({}, {"ANTHROPIC_API_KEY": KEY}, True),
        ({"ANTHROPIC_API_KEY": KEY}, {}, True),
    ],
)
def test_a_credential_of_another_kind_waits_for_a_restart(
    tmp_path: Path, before: dict[str, str], after: dict[str, str], waits: bool
) -> None:
    found = needs_restart(loaded(tmp_path, **before), loaded(tmp_path, **after))
    assert found == (["credential"] if waits else [])


def test_what_waits_for_a_restart_is_measured_against_the_start_and_not_the_last_reload(tmp_path: Path) -> None:
    configuration = Configuration(loaded(tmp_path), lambda: 0.0)
    configuration.change(loaded(tmp_path, "[http]\nport = 9000\n"))
    assert configuration.needs_restart == ["http.port"]
    configuration.change(loaded(tmp_path, "[http]\nport = 9000\n[engine]\nworkers = 2\n"))
    assert configuration.needs_restart == ["http.port"]
    configuration.change(loaded(tmp_path))
    assert configuration.needs_restart == []


def test_the_document_tells_hash_and_age(tmp_path: Path) -> None:
    now = [10.0]
    configuration = Configuration(loaded(tmp_path), lambda: now[0])
    first = configuration.document()
    now[0] = 12.5
    assert configuration.document() == {**first, "age_seconds": 2.5}
    configuration.change(loaded(tmp_path, "[engine]\nworkers = 2\n"))
    second = configuration.document()
    assert second["age_seconds"] == 0
    assert second["hash"] != first["hash"]
    assert len(second["hash"]) == 12


def test_a_file_that_was_edited_warns_until_it_is_loaded(tmp_path: Path) -> None:
    configuration = Configuration(loaded(tmp_path), lambda: 0.0)
    assert configuration.check()["config"].status is Check.PASS
    edited = loaded(tmp_path, "[engine]\nworkers = 2\n")
    told = configuration.check()["config"]
    assert told.status is Check.WARN
    assert told.reason == f"{tmp_path / 'config.toml'} has changed since it was loaded: claudectl reload"
    configuration.change(edited)
    assert configuration.check()["config"].status is Check.PASS


def test_a_file_that_appears_or_goes_differs(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    watch = FileWatch(file, file_digest(file))
    assert not watch.differs()
    file.write_text("x")
    assert watch.differs()
    file.unlink()
    assert not watch.differs()


def test_a_file_that_was_touched_or_written_as_it_was_does_not_differ(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("same")
    watch = FileWatch(file, file_digest(file))
    os.utime(file, ns=(1, 1))
    assert not watch.differs()
    replacement: Any = tmp_path / "new"
    replacement.write_text("same")
    replacement.replace(file)
    assert not watch.differs()


def test_a_file_that_is_not_there_is_not_told_as_one_that_is(tmp_path: Path) -> None:
    without = load({}, {"HOME": str(tmp_path), "CLAUDE_DAEMON_HOME": str(tmp_path)})
    configuration = Configuration(without, lambda: 0.0)
    assert configuration.document()["file"] is None
    loaded(tmp_path, "[http]\nport = 1\n")
    told = configuration.check()["config"]
    assert (told.status, str(tmp_path / "config.toml") in (told.reason or "")) == (Check.WARN, True)
    (tmp_path / "config.toml").unlink()
    assert configuration.document()["file"] is None


def test_a_file_that_has_gone_is_told_by_its_name(tmp_path: Path) -> None:
    configuration = Configuration(loaded(tmp_path), lambda: 0.0)
    (tmp_path / "config.toml").unlink()
    told = configuration.document()
    assert (told["file"], told["changed_on_disk"]) == (str(tmp_path / "config.toml"), True)
