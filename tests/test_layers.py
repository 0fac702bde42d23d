"""Layers: precedence, origins, texts, and every fault at once with its source."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.config import ConfigError, Loaded, Secret, Settings, load
from claude_daemon.config.models import MODELS
from claude_daemon.layers import Fault, Layer, Origin, digest, explain
from claude_daemon.layers.schema import NONE, variables
from claude_daemon.layers.sources import MAX_CONFIG_BYTES
from claude_daemon.layers.text import parse
from claude_daemon.layers.tree import dotted


def write(home: Path, toml: str) -> Path:
    file = home / "config.toml"
    file.write_text(toml)
    file.chmod(0o600)
    return file


def raised(flags: Mapping[str, Any], environ: Mapping[str, str], home: Path) -> tuple[Fault, ...]:
    with pytest.raises(ConfigError) as caught:
        load(flags, environ, home=home)
    return caught.value.faults


def test_each_layer_wins_over_the_one_below_and_every_value_keeps_its_origin(tmp_path: Path) -> None:
    file = write(tmp_path, '[log]\nformat = "json"\n[http]\nport = 1\nmax_waiting = 1\nmax_connections = 1')
    environ = {"CLAUDE_DAEMON_HTTP__PORT": "2", "CLAUDE_DAEMON_HTTP__MAX_WAITING": "2"}
    loaded = load({"http.port": 3, "http.host": None}, environ, home=tmp_path)
    http = loaded.settings.http
    assert (http.port, http.max_waiting, http.max_connections, loaded.settings.log.format) == (
        3,
        2,
        1,
        "json",
    )
    assert loaded.origins["http.port"] == Origin(layer=Layer.FLAG, where="--http.port")
    assert str(loaded.origins["http.max_waiting"]) == "environment CLAUDE_DAEMON_HTTP__MAX_WAITING"
    assert str(loaded.origins["http.max_connections"]) == f"file {file}"
    assert str(loaded.origins["log.format"]) == f"file {file}"
    assert str(loaded.origins["engine.upstream"]) == "profile dev"
    assert str(loaded.origins["http.host"]) == "default"


def test_a_bad_value_below_a_good_one_is_no_fault(tmp_path: Path) -> None:
    write(tmp_path, "[http]\nport = 99999")
    assert load({}, {"CLAUDE_DAEMON_HTTP__PORT": "80"}, home=tmp_path).settings.http.port == 80


def test_every_fault_of_every_layer_is_told_at_once_with_its_source(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        [htpp]
        port = 1
        [http]
        port = 70000
        prot = 1
        tls_cert = "c"
        [mcp.tickets]
        comand = "c"
        [engine]
        workers = 0
        """,
    )
    environ = {
        "CLAUDE_DAEMON_HTTP_PORT": "1",
        "CLAUDE_DAEMON_HTTP__PORT_FILE": "/x",
        "CLAUDE_DAEMON_HTTP__MAX_WAITING": "many",
        "CLAUDE_DAEMON_QUEUE__MAX_ATTEMPTS": "0",
        "CLAUDE_DAEMON_PROFILE": "pro",
        "ANTHROPIC_API_KEY_FILE": "/nowhere",
    }
    flags = {"drain.deadline_s": "soon", "engine.spares": -1, "engine.spare": 1}
    told = {(fault.where, fault.key): fault.message for fault in raised(flags, environ, tmp_path)}
    assert told == {
        (str(file), "htpp"): "unknown section; did you mean http?",
        (str(file), "http.port"): "must be less than or equal to 65535, not 70000",
        (str(file), "http.prot"): "unknown key; did you mean port?",
        (str(file), "http.tls_cert"): "needs tls_key beside it",
        (str(file), "mcp.tickets.comand"): "unknown key; did you mean command?",
        (str(file), "mcp.tickets.command"): "exactly one of command and url is needed",
        (str(file), "engine.workers"): "must be greater than or equal to 1, not 0",
        ("CLAUDE_DAEMON_HTTP_PORT", ""): "unknown variable; did you mean CLAUDE_DAEMON_HTTP__PORT?",
        ("CLAUDE_DAEMON_HTTP__PORT_FILE", ""): (
            "unknown variable: only secrets are read from files; set CLAUDE_DAEMON_HTTP__PORT"
        ),
        ("CLAUDE_DAEMON_HTTP__MAX_WAITING", "http.max_waiting"): "must be a whole number, not 'many'",
        ("CLAUDE_DAEMON_QUEUE__MAX_ATTEMPTS", "queue.max_attempts"): ("must be greater than or equal to 1, not 0"),
        ("CLAUDE_DAEMON_PROFILE", ""): "unknown profile 'pro'; did you mean prod?",
        ("ANTHROPIC_API_KEY_FILE", ""): "/nowhere cannot be read: No such file or directory",
        ("--drain.deadline_s", "drain.deadline_s"): "must be a number, not 'soon'",
        ("--engine.spares", "engine.spares"): "must be greater than or equal to 0, not -1",
        ("--engine.spare", "engine.spare"): "unknown key; did you mean spares?",
    }


def test_a_key_in_the_wrong_place_is_told_where_it_belongs(tmp_path: Path) -> None:
    write(tmp_path, "[engine]\nmax_waiting = 3")
    (fault,) = raised({}, {}, tmp_path)
    assert fault.message == "unknown key; did you mean http.max_waiting?"


def test_a_conflict_with_a_value_that_is_bad_itself_is_not_told(tmp_path: Path) -> None:
    write(tmp_path, '[http]\ntls_cert = "c"\ntls_key = 5')
    assert [fault.key for fault in raised({}, {}, tmp_path)] == ["http.tls_key"]


def test_the_text_of_the_error_is_one_line_a_fault(tmp_path: Path) -> None:
    faults = raised({"http.port": "x"}, {"CLAUDE_DAEMON_X": "y"}, tmp_path)
    assert str(ConfigError(faults)).splitlines() == [str(fault) for fault in faults]
    assert len(faults) == 2


@pytest.mark.parametrize(
    ("toml", "place", "message"),
    [
        ("[http]\nport = \n", ":2:8", "Invalid value"),
        ("[http\n", ":1:6", "Expected ']' at the end of a table declaration"),
        ("a = 1\nb = [1,\n  2", ":3:4", "Unclosed array"),
        ("[http]\nport = 1\nport = 2\n", ":3:9", "Cannot overwrite a value"),
    ],
)
def test_broken_syntax_is_told_with_line_and_column(tmp_path: Path, toml: str, place: str, message: str) -> None:
    file = write(tmp_path, toml)
    assert raised({}, {}, tmp_path) == (Fault(where=f"{file}{place}", message=message),)


def test_a_named_file_must_exist_and_the_default_one_need_not(tmp_path: Path) -> None:
    missing = tmp_path / "other.toml"
    assert load({}, {}, home=tmp_path).paths.config_file == tmp_path / "config.toml"
    for flags, environ in (({"config": missing}, {}), ({}, {"CLAUDE_DAEMON_CONFIG": str(missing)})):
        assert raised(flags, environ, tmp_path) == (Fault(where=str(missing), message="no such file"),)


def test_a_file_named_by_flag_goes_before_one_named_by_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "[http]\nport = 5")
    loaded = load({"config": "config.toml"}, {"CLAUDE_DAEMON_CONFIG": "/nowhere"}, home=tmp_path / "home")
    assert (loaded.settings.http.port, loaded.paths.config_file) == (5, tmp_path / "config.toml")


def test_a_file_that_cannot_be_a_configuration_is_a_fault_and_not_a_crash(tmp_path: Path) -> None:
    cases = {
        "not UTF-8": b"a = '\xff'",
        "is larger than": b"#" * (MAX_CONFIG_BYTES + 1),
        "nest": b"a = " + b"[" * 20000,
    }
    for number, content in enumerate(cases.values()):
        file = tmp_path / f"{number}.toml"
        file.write_bytes(content)
        (fault,) = raised({"config": file}, {}, tmp_path)
        assert fault.where.startswith(str(file))
    (fault,) = raised({"config": tmp_path}, {}, tmp_path)
    assert fault.message == "cannot be read: Is a directory"


def test_sections_that_are_tables_of_names_have_one_variable_in_json(tmp_path: Path) -> None:
    environ = {
        "CLAUDE_DAEMON_ROOTS": '[{"path": "/srv", "trusted": true}]',
        "CLAUDE_DAEMON_MCP": '{"x": {"command": "c", "env": {"K": "v"}}}',
        "CLAUDE_DAEMON_ENGINE__MODELS": '{"x": "claude-x"}',
    }
    loaded = load({}, environ, home=tmp_path)
    assert loaded.settings.roots[0].path == Path("/srv")
    assert loaded.settings.mcp["x"].env == {"K": Secret("v")}
    assert set(loaded.settings.engine.models) == {*MODELS, "x"}
    assert str(loaded.origins["mcp.x.command"]) == "environment CLAUDE_DAEMON_MCP"


def test_every_key_can_be_set_by_its_variable_and_by_a_flag(tmp_path: Path) -> None:
    def text(value: Any) -> str:
        if isinstance(value, tuple | dict):
            return json.dumps(value)
        return NONE if value is None else str(value)

    known = variables(Settings)
    assert len(known) > 60
    for name, path in known.items():
        value: Any = Settings()
        for part in path:
            value = getattr(value, part)
        shown = oct(value) if path == ("control", "mode") else text(value)
        loaded = load({}, {name: shown, "CLAUDE_DAEMON_PROFILE": "staging"}, home=tmp_path)
        flagged = load({dotted(path): shown, "profile": "staging"}, {}, home=tmp_path)
        assert loaded.settings == flagged.settings == load({"profile": "staging"}, {}, home=tmp_path).settings
        assert all(
            origin.where == name
            for key, origin in loaded.origins.items()
            if key == dotted(path) and not isinstance(value, dict)
        )


def test_the_standalone_variables_are_known_and_foreign_ones_ignored(tmp_path: Path) -> None:
    environ = {"CLAUDE_DAEMON_HOME": str(tmp_path), "CLAUDE_DAEMON_SUPERVISOR": "launchd", "CLAUDE_X": "1"}
    loaded = load({}, environ)
    assert (loaded.supervisor, loaded.paths.home) == ("launchd", tmp_path)


# Texts


@given(st.integers(min_value=-(10**30), max_value=10**30))
def test_whole_numbers_survive_the_environment(number: int) -> None:
    assert parse(str(number), int) == number


@given(st.floats(allow_nan=False))
def test_numbers_survive_the_environment(number: float) -> None:
    assert parse(repr(number), float) == number


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_lists_survive_the_environment_as_json(items: list[str]) -> None:
    assert parse(json.dumps(items), tuple[str, ...]) == items


@given(st.lists(st.from_regex(r"[a-z0-9.:/\]-]{1,20}", fullmatch=True)))
def test_lists_of_plain_words_survive_the_environment_with_commas(items: list[str]) -> None:
    assert parse(" , ".join(items), tuple[str, ...]) == items


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers()))
def test_tables_survive_the_environment_as_json(table: dict[str, int]) -> None:
    assert parse(json.dumps(table), Mapping[str, int]) == table


@given(
    st.text(),
    st.sampled_from([int, float, bool, tuple[int, ...], Mapping[str, str], Literal["a"], str, Path]),
)
def test_any_text_gives_a_value_or_a_value_error(text: str, kind: Any) -> None:
    try:
        parse(text, kind)
    except ValueError as error:
        assert str(error).startswith("must be ")


@pytest.mark.parametrize("text", ["true", "TRUE", "1", "yes", " Yes "])
def test_true_is_said_in_several_ways(text: str) -> None:
    assert parse(text, bool) is True


@pytest.mark.parametrize("text", ["false", "0", "no", "No"])
def test_false_is_said_in_several_ways(text: str) -> None:
    assert parse(text, bool) is False


@pytest.mark.parametrize("text", ["", "on", "2", "y"])
def test_other_words_are_no_booleans(text: str) -> None:
    with pytest.raises(ValueError, match="must be true or false"):
        parse(text, bool)


def test_an_address_in_brackets_is_a_name_and_no_list() -> None:
    assert parse("[::1],localhost", tuple[str, ...]) == ["[::1]", "localhost"]


def test_modes_are_octal(tmp_path: Path) -> None:
    assert load({}, {"CLAUDE_DAEMON_CONTROL__MODE": "0660"}, home=tmp_path).settings.control.mode == 0o660
    (fault,) = raised({}, {"CLAUDE_DAEMON_CONTROL__MODE": "0680"}, tmp_path)
    assert fault.message == "must be a whole number in octal, not '0680'"


def test_an_optional_value_is_unset_with_none_or_nothing(tmp_path: Path) -> None:
    write(tmp_path, "[limits]\nconcurrent = 5\ntokens_per_minute = 5")
    environ = {"CLAUDE_DAEMON_LIMITS__CONCURRENT": "none", "CLAUDE_DAEMON_LIMITS__TOKENS_PER_MINUTE": ""}
    limits = load({}, environ, home=tmp_path).settings.limits
    assert (limits.concurrent, limits.tokens_per_minute) == (None, None)


def test_dotted_keys_are_quoted_where_toml_would() -> None:
    assert dotted(("prices", "claude-3.5", "input")) == 'prices."claude-3.5".input'
    assert dotted(("roots", 0, "path")) == "roots[0].path"
    assert dotted(("a\nb",)) == '"a\\nb"'


# What check-config shows


def loaded(home: Path, environ: Mapping[str, str] | None = None) -> Loaded:
    return load({"profile": "prod"}, environ or {}, home=home)


def test_explain_shows_every_value_with_its_origin_and_masks_secrets(tmp_path: Path) -> None:
    write(tmp_path, '[webhooks]\nsecret = "hunter22"\n[[roots]]\npath = "/srv"\n[log.levels]\naiohttp = "error"')
    rows = explain(loaded(tmp_path, {"ANTHROPIC_API_KEY": "hunter33"}))
    shown = {key: (value, origin) for key, value, origin in rows}
    file = f"file {tmp_path / 'config.toml'}"
    assert shown["http.port"] == ("8006", "default")
    assert shown["http.allowed_hosts"] == ('["localhost", "127.0.0.1", "[::1]"]', "default")
    assert shown["http.tls_cert"] == ("none", "default")
    assert shown["control.mode"] == ("0o600", "default")
    assert shown["log.format"] == ('"json"', "profile prod")
    assert shown["log.levels.aiohttp"] == ('"error"', file)
    assert shown["roots"] == ('[{path = "/srv", trusted = false}]', file)
    assert shown["webhooks.secret"] == ("***", file)
    assert shown["credential"] == ("api_key ***", "environment ANTHROPIC_API_KEY")
    assert "hunter" not in str(rows)
    assert len(shown) == len(rows)
    assert {key for key, _ in Settings()} == {key.split(".")[0] for key in shown} - {"credential"}


def test_the_digest_changes_with_values_and_secrets_and_not_with_where_they_came_from(tmp_path: Path) -> None:
    plain = digest(loaded(tmp_path))
    assert plain == digest(loaded(tmp_path, {"CLAUDE_DAEMON_HTTP__PORT": "8006"}))
    others = [
        {"CLAUDE_DAEMON_HTTP__PORT": "8007"},
        {"CLAUDE_DAEMON_WEBHOOKS__SECRET": "a"},
        {"CLAUDE_DAEMON_WEBHOOKS__SECRET": "b"},
        {"ANTHROPIC_API_KEY": "a"},
        {"ANTHROPIC_AUTH_TOKEN": "a"},
    ]
    digests = {plain, *(digest(loaded(tmp_path, environ)) for environ in others)}
    assert len(digests) == 6
    assert all(len(found) == 64 for found in digests)


def test_values_that_are_no_unicode_are_faults_or_shown_escaped(tmp_path: Path) -> None:
    environ = {
        "CLAUDE_DAEMON_STORE__PATH": os.fsdecode(b"/\xff"),
        "CLAUDE_DAEMON_HTTP__HOST": os.fsdecode(b"\xff"),
    }
    (fault,) = raised({}, environ, tmp_path)
    assert fault.key == "http.host"
    del environ["CLAUDE_DAEMON_HTTP__HOST"]
    odd = loaded(tmp_path, environ)
    assert ("store.path", '"/\\udcff"', "environment CLAUDE_DAEMON_STORE__PATH") in explain(odd)
    assert digest(odd)


def test_prod_leaves_no_single_client_room_for_all(tmp_path: Path) -> None:
    staging, prod = (load({"profile": name}, {}, home=tmp_path) for name in ("staging", "prod"))
    assert (prod.settings.http.max_connections_per_peer, prod.settings.queue.max_queued_per_key) == (512, 1000)
    assert prod.settings.http.max_connections_per_peer < staging.settings.http.max_connections_per_peer
    assert prod.settings.queue.max_queued_per_key < prod.settings.queue.max_queued
    assert str(prod.origins["queue.max_queued_per_key"]) == "profile prod"
    own = load({"profile": "prod", "queue.max_queued_per_key": "7"}, {}, home=tmp_path)
    assert own.settings.queue.max_queued_per_key == 7
