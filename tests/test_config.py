"""The settings: defaults, bounds, paths, profiles, secrets, the credential, and etc/config.toml."""

from __future__ import annotations

import os
import re
import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from claude_daemon.config import ConfigError, Loaded, Origin, Secret, Settings, load
from claude_daemon.config.fields import Capability
from claude_daemon.config.loading import check_reload
from claude_daemon.config.models import MAX_DIRECT, MAX_LAME_DUCK_S, MODELS, Http, Role
from claude_daemon.core.worker import MAX_WORKERS
from claude_daemon.engine import capabilities
from claude_daemon.layers.schema import type_at
from claude_daemon.layers.sources import MAX_SECRET_BYTES
from claude_daemon.layers.tree import DEFAULT, Layer, dotted, leaves
from claude_daemon.wire import tasks as wire

SAMPLE = Path(__file__).parents[1] / "etc" / "config.toml"


def settings(home: Path, toml: str = "", *, environ: Mapping[str, str] | None = None, **flags: Any) -> Loaded:
    home.joinpath("config.toml").write_text(toml)
    home.joinpath("config.toml").chmod(0o600)
    return load(flags, environ or {}, home=home)


def faults(home: Path, toml: str = "", *, environ: Mapping[str, str] | None = None, **flags: Any) -> list[str]:
    """What is wrong, as ``where: key: message`` with the config file called FILE."""
    with pytest.raises(ConfigError) as caught:
        settings(home, toml, environ=environ, **flags)
    return [str(fault).replace(str(home / "config.toml"), "FILE") for fault in caught.value.faults]


def test_nothing_at_all_gives_the_defaults_of_the_profile_dev(tmp_path: Path) -> None:
    loaded = load({}, {}, home=tmp_path)
    assert loaded.profile == "dev"
    assert loaded.settings.http == Http()
    assert (loaded.settings.engine.upstream, loaded.settings.log.format) == ("auto", "console")
    assert loaded.credential is None
    assert loaded.supervisor is None
    assert loaded.origins["http.port"] == DEFAULT
    assert str(loaded.origins["log.format"]) == "profile dev"


@pytest.mark.parametrize("profile", ["staging", "prod"])
def test_staging_and_prod_want_the_real_upstream_and_json(tmp_path: Path, profile: str) -> None:
    loaded = load({}, {"CLAUDE_DAEMON_PROFILE": profile}, home=tmp_path)
    assert (loaded.settings.engine.upstream, loaded.settings.log.format) == ("anthropic", "json")


def test_the_profile_flag_wins_over_its_variable(tmp_path: Path) -> None:
    assert load({"profile": "prod"}, {"CLAUDE_DAEMON_PROFILE": "dev"}, home=tmp_path).profile == "prod"


def test_an_unknown_profile_names_the_nearest_and_its_source(tmp_path: Path) -> None:
    assert faults(tmp_path, profile="stagin") == ["--profile: unknown profile 'stagin'; did you mean staging?"]
    assert faults(tmp_path, environ={"CLAUDE_DAEMON_PROFILE": "x"}) == [
        "CLAUDE_DAEMON_PROFILE: unknown profile 'x': dev, staging or prod"
    ]


def test_offline_is_a_flag_of_its_own(tmp_path: Path) -> None:
    loaded = settings(tmp_path, '[engine]\nupstream = "anthropic"', offline=True)
    assert loaded.settings.engine.upstream == "offline"
    assert str(loaded.origins["engine.upstream"]) == "flag --offline"
    assert settings(tmp_path, offline=False).settings.engine.upstream == "auto"


# Paths


def test_without_anything_all_files_are_below_the_users_home() -> None:
    paths = load({}, {"HOME": "/nowhere"}).paths
    home = Path("/nowhere/.claude-daemon")
    assert paths.home == home
    assert paths.config_file == home / "config.toml"
    assert paths.database == home / "daemon.db"
    assert paths.local_key == home / "local.key"
    assert paths.audit_key == home / "audit.key"
    assert paths.control_socket == home / "run/ctl.sock"
    assert paths.pid_file == home / "run/daemon.pid"
    assert paths.log_file == home / "log/daemon.log"
    assert (paths.engine_dir, paths.work_dir, paths.run_dir) == (home / "engine", home / "work", home / "run")


def test_systemds_directories_take_precedence_over_the_home_variable(tmp_path: Path) -> None:
    environ = {
        "CLAUDE_DAEMON_HOME": "/elsewhere",
        "STATE_DIRECTORY": "/var/lib/cd:/var/lib/other",
        "RUNTIME_DIRECTORY": "/run/cd",
        "LOGS_DIRECTORY": "/var/log/cd",
        "CONFIGURATION_DIRECTORY": str(tmp_path),
    }
    paths = load({}, environ).paths
    assert paths.home == Path("/var/lib/cd")
    assert paths.database == Path("/var/lib/cd/daemon.db")
    assert (paths.control_socket, paths.pid_file) == (Path("/run/cd/ctl.sock"), Path("/run/cd/daemon.pid"))
    assert paths.log_file == Path("/var/log/cd/daemon.log")
    assert paths.config_file == tmp_path / "config.toml"


def test_an_explicit_home_takes_precedence_over_systemds_directories(tmp_path: Path) -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/cd", "RUNTIME_DIRECTORY": "/run/cd", "CLAUDE_DAEMON_HOME": "/x"}
    paths = load({}, environ, home=tmp_path).paths
    assert (paths.home, paths.run_dir) == (tmp_path, tmp_path / "run")


def test_a_relative_home_is_made_absolute_and_a_tilde_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load({}, {"CLAUDE_DAEMON_HOME": "there"}).paths.home == tmp_path / "there"
    assert load({}, {"CLAUDE_DAEMON_HOME": "~/there", "HOME": "/u"}).paths.home == Path("/u/there")


def test_relative_paths_in_settings_stand_below_the_home_and_systemds_parts_of_it(tmp_path: Path) -> None:
    toml = '[http]\ntls_cert = "tls/cert.pem"\ntls_key = "~/key.pem"\n[log]\nfile = "log/other.log"'
    loaded = settings(tmp_path, toml, environ={"HOME": "/u"})
    assert loaded.settings.http.tls_cert == tmp_path / "tls/cert.pem"
    assert loaded.settings.http.tls_key == Path("/u/key.pem")
    assert loaded.paths.log_file == tmp_path / "log/other.log"


def test_no_log_file_is_said_with_none(tmp_path: Path) -> None:
    assert settings(tmp_path, '[log]\nfile = "none"').paths.log_file is None
    assert settings(tmp_path, environ={"CLAUDE_DAEMON_LOG__FILE": ""}).paths.log_file is None


def test_a_socket_path_of_107_bytes_is_taken_and_one_of_108_refused(tmp_path: Path) -> None:
    fits = "/" + "é" * 53
    assert len(fits.encode()) == 107
    assert settings(tmp_path, f'[control]\nsocket = "{fits}"').paths.control_socket == Path(fits)
    (message,) = faults(tmp_path, f'[control]\nsocket = "{fits}x"')
    assert message.startswith("FILE: control.socket: must be at most 107 bytes long")


def test_a_home_too_deep_for_the_default_socket_is_a_fault(tmp_path: Path) -> None:
    home = tmp_path.joinpath("d" * 100)
    with pytest.raises(ConfigError, match=r"control\.socket: must be at most 107 bytes"):
        load({}, {}, home=home)


def test_the_socket_can_be_given_by_flag_and_by_claudectls_variable(tmp_path: Path) -> None:
    environ = {"CLAUDE_DAEMON_SOCKET": "/a"}
    assert settings(tmp_path, environ=environ).paths.control_socket == Path("/a")
    assert settings(tmp_path, environ=environ, socket="/b").paths.control_socket == Path("/b")


# Values


BAD_VALUES = [
    ("[http]\nport = 65536", "FILE: http.port: must be less than or equal to 65535, not 65536"),
    ("[http]\nport = -1", "FILE: http.port: must be greater than or equal to 0, not -1"),
    ('[http]\nport = "8006"', "FILE: http.port: must be a whole number, not '8006'"),
    ("[http]\nport = 8006.0", "FILE: http.port: must be a whole number, not 8006.0"),
    ("[http]\nport = true", "FILE: http.port: must be a whole number, not True"),
    ("[http]\nmax_body_bytes = 0", "FILE: http.max_body_bytes: must be greater than or equal to 1, not 0"),
    ("[http]\nallow_plaintext = 1", "FILE: http.allow_plaintext: must be true or false, not 1"),
    ('[http]\nallowed_hosts = "a"', "FILE: http.allowed_hosts: must be a list, not 'a'"),
    (
        '[http]\nallowed_hosts = ["a", ""]',
        "FILE: http.allowed_hosts[1]: must not be empty, not ''",
    ),
    (
        '[http]\nallowed_origins = ["example.com"]',
        "FILE: http.allowed_origins[0]: must be an http or https URL without query, not 'example.com'",
    ),
    (
        '[http]\ntrusted_proxies = ["10.0.0.0/33"]',
        "FILE: http.trusted_proxies[0]: must be an address or a network such as 10.0.0.0/8, not '10.0.0.0/33'",
    ),
    ('[http]\ntls_cert = "/c"', "FILE: http.tls_cert: needs tls_key beside it"),
    (
        '[http]\nhost = "0.0.0.0"',
        "FILE: http.host: is 0.0.0.0, beyond loopback: set tls_cert and tls_key, or allow_plaintext",
    ),
    ("http = 5", "FILE: http: must be a table"),
    (
        "[control]\nmode = 600",
        "FILE: control.mode: must be an octal mode such as 0o600 that lets the owner read and write, not 600",
    ),
    (
        '[engine]\nupstream = "ofline"',
        "FILE: engine.upstream: must be 'anthropic', 'offline' or 'auto', not 'ofline'",
    ),
    ('[engine]\nbase_url = "https://me:pw@x"', "FILE: engine.base_url: must not hold a user or password"),
    (
        '[engine]\ndefault_model = "sonet"',
        "FILE: engine.default_model: is neither an alias nor a model: sonet",
    ),
    ("[engine]\nstall_timeout_s = 0", "FILE: engine.stall_timeout_s: must be greater than 0, not 0"),
    ("[engine]\nstall_timeout_s = inf", "FILE: engine.stall_timeout_s: must be a finite number, not inf"),
    ("[engine.models]\nx = 1", "FILE: engine.models.x: must be a string, not 1"),
    (
        '[engine.models]\n"--x" = "y"',
        "FILE: engine.models.--x: must be a plain name: letters, digits and a few marks, no mark in front, not '--x'",
    ),
    (
        '[store]\nkind = "redis"',
        'FILE: store.kind: "redis" is not built yet: this version stores in sqlite only',
    ),
    ('[[roots]]\npath = "here"', "FILE: roots[0].path: must be absolute, not 'here'"),
    ("[[roots]]\ntrusted = true", "FILE: roots[0].path: is required"),
    ("[mcp.x]", "FILE: mcp.x.command: exactly one of command and url is needed"),
    ("[prices.x]\ninput = 1\noutput = 1\ncache_write = 1", "FILE: prices.x.cache_read: is required"),
    (
        '[budget]\ntimezone = "Mars/Base"',
        "FILE: budget.timezone: must be a time zone such as UTC or Europe/Berlin, not 'Mars/Base'",
    ),
    ("[budget]\nusd_per_day = -1", "FILE: budget.usd_per_day: must be greater than or equal to 0, not -1"),
    (
        '[log.levels]\naiohttp = "loud"',
        "FILE: log.levels.aiohttp: must be 'debug', 'info', 'warning', 'error' or 'critical', not 'loud'",
    ),
    ('[redis]\nurl = "http://x"', "FILE: redis.url: must be a redis://, rediss:// or unix:// URL"),
]


@pytest.mark.parametrize(("toml", "fault"), BAD_VALUES, ids=[toml.replace("\n", " ") for toml, _ in BAD_VALUES])
def test_a_bad_value_is_told_with_file_key_and_reason(tmp_path: Path, toml: str, fault: str) -> None:
    assert faults(tmp_path, toml) == [fault]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_tls(tmp_path: Path, host: str) -> None:
    assert settings(tmp_path, f'[http]\nhost = "{host}"').settings.http.loopback


@pytest.mark.parametrize("extra", ["allow_plaintext = true", 'tls_cert = "c"\ntls_key = "k"'])
def test_beyond_loopback_with_tls_or_on_purpose_is_fine(tmp_path: Path, extra: str) -> None:
    assert not settings(tmp_path, f'[http]\nhost = "::"\n{extra}').settings.http.loopback


def test_the_own_host_is_always_accepted() -> None:
    assert Http(host="::1", allowed_hosts=("API.example",)).accepted_hosts == {"[::1]", "api.example"}


def test_aliases_are_added_to_the_shipped_ones_and_may_be_the_default(tmp_path: Path) -> None:
    loaded = settings(tmp_path, '[engine]\ndefault_model = "fast"\n[engine.models]\nfast = "claude-x[1m]"')
    assert loaded.settings.engine.models["fast"] == "claude-x[1m]"
    assert loaded.settings.engine.models["sonnet"] == MODELS["sonnet"]
    assert loaded.origins["engine.models.fast"].layer == "file"
    assert loaded.origins["engine.models.sonnet"] == DEFAULT


def test_every_capability_of_the_engine_can_be_done_without_and_no_other(tmp_path: Path) -> None:
    assert set(get_args(Capability)) == set(capabilities.ROWS)
    environ = {"CLAUDE_DAEMON_ENGINE__WITHOUT": ",".join(capabilities.ROWS)}
    without = settings(tmp_path, environ=environ).settings.engine.without
    assert set(capabilities.Capabilities().without(without).missing()) == set(capabilities.ROWS)
    (message,) = faults(tmp_path, '[engine]\nwithout = ["claer"]')
    assert message.startswith("FILE: engine.without[0]: must be 'bare', ")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().http.port = 1  # type: ignore[misc]


# Secrets


def test_a_redis_url_is_a_secret_and_so_is_its_password(tmp_path: Path) -> None:
    loaded = settings(tmp_path, '[redis]\nurl = "rediss://:pw@host/0"')
    assert loaded.secrets == {"redis.url": Secret("rediss://:pw@host/0")}
    assert faults(tmp_path, "[redis]\nurl = 5") == ["FILE: redis.url: must be a string"]


def test_a_proxys_network_and_a_time_zone_are_taken_as_written(tmp_path: Path) -> None:
    toml = '[http]\ntrusted_proxies = ["10.0.0.0/8", "::1"]\n[budget]\ntimezone = "UTC"'
    loaded = settings(tmp_path, toml)
    assert loaded.settings.http.trusted_proxies == ("10.0.0.0/8", "::1")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ANTHROPIC_API_KEY", "api_key"),
        ("ANTHROPIC_AUTH_TOKEN", "auth_token"),
        ("CLAUDE_CODE_OAUTH_TOKEN", "oauth_token"),
    ],
)
def test_a_credential_comes_from_its_variable_its_file_or_systemds_directory(
    tmp_path: Path, name: str, kind: str
) -> None:
    file = tmp_path / name
    file.write_text("one\n")
    where = {
        name: {name: "one"},
        f"{name}_FILE ({file})": {f"{name}_FILE": str(file)},
        str(file): {"CREDENTIALS_DIRECTORY": str(tmp_path)},
    }
    for origin, environ in where.items():
        credential = load({}, environ, home=tmp_path).credential
        assert credential is not None
        assert (credential.kind, credential.secret.reveal()) == (kind, "one")
        assert credential.origin == Origin(layer=Layer.ENVIRONMENT, where=origin)


def test_the_api_key_goes_before_the_auth_token_before_the_login(tmp_path: Path) -> None:
    environ = {"CLAUDE_CODE_OAUTH_TOKEN": "o", "ANTHROPIC_AUTH_TOKEN": "a", "ANTHROPIC_API_KEY": ""}
    loaded = load({}, environ, home=tmp_path)
    assert loaded.credential is not None
    assert loaded.credential.kind == "auth_token"
    assert loaded.secrets == {"ANTHROPIC_AUTH_TOKEN": Secret("a"), "CLAUDE_CODE_OAUTH_TOKEN": Secret("o")}


def test_two_sources_of_one_credential_are_a_fault_that_names_both(tmp_path: Path) -> None:
    environ = {"ANTHROPIC_API_KEY": "a", "ANTHROPIC_API_KEY_FILE": "/nowhere"}
    assert faults(tmp_path, environ=environ) == [
        "ANTHROPIC_API_KEY: set more than once, by ANTHROPIC_API_KEY and ANTHROPIC_API_KEY_FILE; keep one"
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff", "is not UTF-8 (at byte 0)"),
        (b"a\nx-evil: 1", "holds a line break or another unprintable character"),
        (b"a" * (MAX_SECRET_BYTES + 1), "is larger than 16384 bytes"),
    ],
)
def test_a_bad_secret_file_is_a_fault_with_its_path(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    assert faults(tmp_path, environ={"ANTHROPIC_API_KEY_FILE": str(file)}) == [
        f"ANTHROPIC_API_KEY_FILE: {file} {reason}"
    ]


def test_a_secret_setting_comes_from_a_file_or_systemds_directory_too(tmp_path: Path) -> None:
    file = tmp_path / "CLAUDE_DAEMON_WEBHOOKS__SECRET"
    file.write_text("one")
    for environ in (
        {"CLAUDE_DAEMON_WEBHOOKS__SECRET_FILE": str(file)},
        {"CREDENTIALS_DIRECTORY": str(tmp_path)},
    ):
        loaded = settings(tmp_path, '[webhooks]\nsecret = "two"', environ=environ)
        assert loaded.settings.webhooks.secret == Secret("one")
        assert loaded.secrets == {"webhooks.secret": Secret("one")}
        assert loaded.origins["webhooks.secret"].where.endswith("SECRET") or "_FILE (" in str(
            loaded.origins["webhooks.secret"]
        )


def test_a_secret_in_a_file_that_others_may_read_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[webhooks]\nsecret = "s3cret"\n[mcp.x]\ncommand = "c"\nenv = { TOKEN = "t0ken" }\n')
    file.chmod(0o640)
    with pytest.raises(ConfigError) as caught:
        load({}, {}, home=tmp_path)
    text = str(caught.value)
    assert [fault.key for fault in caught.value.faults] == ["webhooks.secret", "mcp.x.env.TOKEN"]
    assert "others may read this file (mode 0640)" in text
    assert "s3cret" not in text
    assert "t0ken" not in text
    file.chmod(0o600)
    loaded = load({}, {}, home=tmp_path)
    assert set(loaded.secrets) == {"webhooks.secret", "mcp.x.env.TOKEN"}


def test_a_key_under_a_name_that_is_no_secret_is_a_fault_that_does_not_repeat_it(tmp_path: Path) -> None:
    text = "\n".join(faults(tmp_path, '[engine]\napi_key = "sk-ant-api03-abcdef"\n[log]\nlevel = "cd_0123456789"'))
    assert "engine.api_key: holds what looks like a key" in text
    assert "engine.api_key: unknown key" in text
    assert "log.level: holds what looks like a key" in text
    assert "sk-ant" not in text
    assert "0123456789" not in text


def test_the_base_url_of_the_anthropic_sdk_is_below_the_file(tmp_path: Path) -> None:
    environ = {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9/"}
    loaded = settings(tmp_path, environ=environ)
    assert loaded.settings.engine.base_url == "http://127.0.0.1:9"
    assert str(loaded.origins["engine.base_url"]) == "environment ANTHROPIC_BASE_URL"
    loaded = settings(tmp_path, '[engine]\nbase_url = "http://127.0.0.1:10"', environ=environ)
    assert loaded.settings.engine.base_url == "http://127.0.0.1:10"


# etc/config.toml


def uncommented() -> str:
    """A line that begins with ``#`` and no space is a setting."""
    return re.sub(r"^#(?=[a-z\"])", "", SAMPLE.read_text(), flags=re.MULTILINE)


def test_the_sample_configuration_equals_the_defaults_commented_and_uncommented(tmp_path: Path) -> None:
    for number, text in enumerate((SAMPLE.read_text(), uncommented())):
        home = tmp_path / str(number)
        home.mkdir()
        loaded = settings(home, text, profile="prod")
        expected = load({"profile": "prod"}, {}, home=home)
        assert loaded.settings == expected.settings


def test_a_role_may_allow_as_much_as_any_task_may_ask_for() -> None:
    most = {
        "max_turns": wire.MAX_TURNS,
        "max_cost_usd": wire.MAX_COST_USD,
        "max_timeout_s": wire.MAX_TIMEOUT_S,
        "max_priority": wire.MAX_PRIORITY,
    }
    assert Role.model_validate(most).max_turns == wire.MAX_TURNS
    for name, value in most.items():
        with pytest.raises(ValidationError):
            Role.model_validate({name: value + 1})


def test_the_sample_configuration_sets_every_key_and_explains_every_table() -> None:
    named = {dotted(path) for path, _ in leaves(tomllib.loads(uncommented()))}
    free = {"roots", "mcp", "roles", "prices", "budget.domains"}
    assert named == {dotted(path) for path, _ in leaves(Settings())} - free
    for section in free:
        model = type_at(Settings, (*section.split("."), 0 if section == "roots" else "x"))
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        block = SAMPLE.read_text().partition(f"# [[{section}" if section == "roots" else f"# [{section}.")[2]
        for key in model.model_fields:
            assert f"# {key} = " in block, (section, key)


@pytest.mark.parametrize(
    ("key", "most"),
    [
        ("engine.workers", MAX_WORKERS),
        ("engine.spares", MAX_WORKERS),
        ("engine.direct_max", MAX_DIRECT),
        ("drain.lame_duck_s", MAX_LAME_DUCK_S),
    ],
)
def test_what_no_machine_can_give_is_refused(tmp_path: Path, key: str, most: int) -> None:
    section, name = key.split(".")
    loaded = settings(tmp_path, f"[{section}]\n{name} = {most}\n").settings
    assert getattr(getattr(loaded, section), name) == most
    (message,) = faults(tmp_path, f"[{section}]\n{name} = {most + 1}\n")
    assert message.startswith(f"FILE: {key}: ") and str(most) in message


def load_at_once(home: Path, environ: Mapping[str, str]) -> list[str]:
    """The faults; fails where the load waits for somebody who never comes."""
    told: list[str] = []

    def loading() -> None:
        try:
            load({}, environ, home=home)
        except ConfigError as error:
            told.extend(map(str, error.faults))

    thread = threading.Thread(target=loading, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    return told


def test_a_pipe_in_place_of_the_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.toml", 0o600)
    assert load_at_once(tmp_path, {}) == [f"{tmp_path / 'config.toml'}: cannot be read: not a regular file"]


def test_a_pipe_in_place_of_a_secret_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "key"
    os.mkfifo(pipe, 0o600)
    (told,) = load_at_once(tmp_path, {"ANTHROPIC_API_KEY_FILE": str(pipe)})
    assert told == f"ANTHROPIC_API_KEY_FILE: {pipe} cannot be read: not a regular file"


def test_a_reload_refuses_a_file_that_is_gone_and_takes_an_empty_one(tmp_path: Path) -> None:
    before = settings(tmp_path, "[engine]\nworkers = 7\n")
    file = tmp_path / "config.toml"
    check_reload(before, settings(tmp_path, ""))
    file.unlink()
    without = load({}, {}, home=tmp_path)
    with pytest.raises(ConfigError) as refused:
        check_reload(before, without)
    (fault,) = refused.value.faults
    assert str(fault).startswith(f"{file}: is gone since it was loaded")
    check_reload(without, without)  # where there was none nothing is lost
