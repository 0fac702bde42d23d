"""Settings that are written down and do nothing yet are refused or told, never silently taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from claude_daemon.config import in_force, load
from claude_daemon.config.in_force import OTHERS, PROTECTING, idle, refused


def loaded(home: Path, **environ: str):  # type: ignore[no-untyped-def]
    return load({}, {"HOME": str(home), **environ})


def test_the_defaults_name_nothing(tmp_path: Path) -> None:
    assert refused(loaded(tmp_path)) == []
    assert idle(loaded(tmp_path)) == []


def test_a_protecting_setting_is_refused_with_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_force, "PROTECTING", {"limits": "rate limits"})
    (fault,) = refused(loaded(tmp_path, CLAUDE_DAEMON_LIMITS__CONCURRENT="2"))
    assert fault.key == "limits.concurrent"
    assert "CLAUDE_DAEMON_LIMITS__CONCURRENT" in fault.where
    assert "not in force" in fault.message


def test_what_durable_tasks_brought_into_force_is_neither_refused_nor_told(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        """
        [queue]
        max_queued = 5
        max_queued_per_key = 5
        max_attempts = 1
        retention_days = 1
        [store]
        kind = "sqlite"
        path = "tasks.db"
        stall_s = 5
        [prices.sonnet]
        input = 3
        output = 15
        cache_write = 3.75
        cache_read = 0.3
        [limits]
        requests_per_minute = 60
        overall_concurrent = 4
        [budget]
        usd_per_day = 5
        timezone = "UTC"
        [budget.domains.team]
        usd_per_month = 50
        [webhooks]
        secret = "s"
        allow_private = true
        timeout_s = 3
        """
    )
    (tmp_path / "config.toml").chmod(0o600)
    own = load({}, {}, home=tmp_path)
    assert len([key for key, origin in own.origins.items() if origin.layer == "file"]) == 20
    assert (idle(own), refused(own)) == ([], [])


def test_every_prefix_is_a_setting(tmp_path: Path) -> None:
    keys = {"roots", "mcp", "roles", "prices", *loaded(tmp_path).origins}
    for prefix in (*PROTECTING, *OTHERS):
        assert any(key == prefix or key.startswith(f"{prefix}.") for key in keys), prefix
