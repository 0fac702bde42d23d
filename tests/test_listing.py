"""What ``claudectl config`` tells of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from claude_daemon.config import load
from claude_daemon.config.listing import listing
from claude_daemon.config.loading import Loaded

KEY = "sk-ant-listing-test-0123456789"


def loaded(home: Path, text: str, **environ: str) -> Loaded:
    (home / "config.toml").write_text(text)
    (home / "config.toml").chmod(0o600)
    return load({}, {"HOME": str(home), "ANTHROPIC_API_KEY": KEY, **environ}, home=home)


def rows(now: Loaded, started: Loaded) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in listing(now, started)["values"]}


def test_a_value_that_a_profile_a_file_or_a_variable_has_changed_is_told_as_such(tmp_path: Path) -> None:
    now = loaded(
        tmp_path,
        'engine.workers = 8\nqueue.max_attempts = 3\n[prices."m"]\ninput=1\noutput=2\ncache_write=3\ncache_read=4\n',
        CLAUDE_DAEMON_PROFILE="prod",
        CLAUDE_DAEMON_ENGINE__SPARES="1",
    )
    told = rows(now, now)
    changed = {key for key, row in told.items() if row["changed"]}
    prices = {f"prices.m.{name}" for name in ("input", "output", "cache_write", "cache_read")}
    limits = {"http.max_connections_per_peer", "queue.max_queued_per_key"}
    assert changed == {"engine.workers", "credential", *prices, *limits}  # not those that were set to their default
    assert told["queue.max_attempts"]["layer"] == "file"
    assert (told["engine.workers"]["value"], told["engine.workers"]["default"]) == (8, "4")
    assert told["engine.workers"]["origin"] == f"file {tmp_path / 'config.toml'}"
    assert told["prices.m.input"]["default"] is None
    assert told["http.max_connections_per_peer"]["origin"] == "profile prod"


def test_what_waits_for_a_restart_is_told_with_what_is_in_force(tmp_path: Path) -> None:
    started = loaded(tmp_path, "http.port = 8006\n")
    told = rows(loaded(tmp_path, "http.port = 9000\nengine.workers = 2\n"), started)
    assert (told["http.port"]["value"], told["http.port"]["in_force"]) == (9000, "8006")
    assert (told["engine.workers"]["value"], told["engine.workers"]["in_force"]) == (2, None)


def test_secrets_are_masked_in_every_form(tmp_path: Path) -> None:
    text = 'webhooks.secret = "planted-webhook"\n[mcp.x]\ncommand = "/bin/x"\nenv = { T = "planted-env" }\n'
    now = loaded(tmp_path, text, CLAUDE_DAEMON_REDIS__URL="redis://:planted-redis@localhost")
    told = rows(now, now)
    assert "planted" not in str(told)
    assert KEY not in str(told)
    assert (told["webhooks.secret"]["value"], told["webhooks.secret"]["text"]) == ("***", "***")
    assert told["mcp.x.env.T"]["value"] == "***"


def test_without_a_file_or_a_credential_it_says_so(tmp_path: Path) -> None:
    now = load({}, {"HOME": str(tmp_path)}, home=tmp_path)
    document = listing(now, now)
    told = {row["key"]: row for row in document["values"]}
    assert document["file"] is None
    assert (told["credential"]["text"], told["credential"]["layer"]) == ("none", "default")
