"""Settings that are written down and do nothing yet are refused or told, never silently taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from claude_daemon.config import load
from claude_daemon.config.in_force import OTHERS, PROTECTING, idle, refused


def loaded(home: Path, **environ: str):  # type: ignore[no-untyped-def]
    return load({}, {"HOME": str(home), **environ})


def test_the_defaults_name_nothing(tmp_path: Path) -> None:
    assert refused(loaded(tmp_path)) == []
    assert idle(loaded(tmp_path)) == []


@pytest.mark.parametrize(
    ("variable", "value", "key"),
    [
        ("CLAUDE_DAEMON_BUDGET__USD_PER_DAY", "5", "budget.usd_per_day"),
        ("CLAUDE_DAEMON_LIMITS__CONCURRENT", "2", "limits.concurrent"),
        ("CLAUDE_DAEMON_ENGINE__SANDBOX", "bwrap", "engine.sandbox"),
    ],
)
def test_a_protecting_setting_is_refused_with_where_it_stands(
    tmp_path: Path, variable: str, value: str, key: str
) -> None:
    (fault,) = refused(loaded(tmp_path, **{variable: value}))
    assert fault.key == key
    assert variable in fault.where
    assert "not in force" in fault.message


def test_another_setting_is_told(tmp_path: Path) -> None:
    assert idle(loaded(tmp_path, CLAUDE_DAEMON_WEBHOOKS__TIMEOUT_S="3")) == ["webhooks.timeout_s"]
    assert refused(loaded(tmp_path, CLAUDE_DAEMON_WEBHOOKS__TIMEOUT_S="3")) == []


def test_every_prefix_is_a_setting(tmp_path: Path) -> None:
    keys = {"roots", "mcp", "roles", "prices", *loaded(tmp_path).origins}
    for prefix in (*PROTECTING, *OTHERS):
        assert any(key == prefix or key.startswith(f"{prefix}.") for key in keys), prefix
