"""What differs between two configurations, and what of it only a restart brings into force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from claude_daemon.config.loading import Loaded
from claude_daemon.layers import explain
from claude_daemon.layers.tree import dotted, leaves

UNSET: Final = "unset"
CREDENTIAL: Final = "credential"

# What is opened, bound or probed once, when the daemon starts.
FIXED: Final = frozenset(
    {
        "http.host",
        "http.port",
        "control.socket",
        "control.mode",
        "engine.cli_path",
        "engine.upstream",
        "engine.base_url",
        "engine.without",
        "engine.sandbox",
        "store.kind",
        "store.path",
        "log.format",
        "log.file",
        "telemetry.otlp_endpoint",
    }
)
# These may change; whether they are there at all may not.
FIXED_PRESENCE: Final = frozenset({"http.tls_cert", "http.tls_key", "webhooks.secret", "redis.url"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One value as it was and is, as TOML writes them; secrets are masked."""

    key: str
    old: str
    new: str


def changes(old: Loaded, new: Loaded) -> list[Change]:
    """Every value that differs, the credential included, in the order of the configuration. Of a table that was empty,
    or is, what it has tells."""
    before, after = _shown(old), _shown(new)
    found = _different(old, new)
    keys = [key for key in found if not any(one.startswith(f"{key}.") for one in found)]
    return [_change(key, before.get(key, UNSET), after.get(key, UNSET)) for key in keys]


def _change(key: str, old: str, new: str) -> Change:
    return Change(key=key, old=old, new=new if new != old else f"{new} (another)")  # secrets all look alike


def needs_restart(started: Loaded, now: Loaded) -> list[str]:
    """The keys whose values are not in force until the daemon is restarted; ``started``: what it was started with."""
    before, after = _values(started), _values(now)
    found = []
    for key in _different(started, now):
        appeared = (before.get(key) is None) != (after.get(key) is None)
        if key in FIXED or (key in FIXED_PRESENCE and appeared) or (key == CREDENTIAL and _another_way(started, now)):
            found.append(key)
    return found


def _another_way(started: Loaded, now: Loaded) -> bool:
    """Whether the credential is of a kind that workers must be started otherwise for."""
    kinds = [loaded.credential.kind if loaded.credential else None for loaded in (started, now)]
    return (None in kinds) or ("oauth_token" in kinds and kinds[0] != kinds[1])


def _different(old: Loaded, new: Loaded) -> list[str]:
    before, after = _values(old), _values(new)
    return [key for key in {**before, **after} if before.get(key, UNSET) != after.get(key, UNSET)]


def _values(loaded: Loaded) -> dict[str, Any]:
    values = {dotted(path): value for path, value in leaves(loaded.settings)}
    credential = loaded.credential
    return values | {CREDENTIAL: (credential.kind, credential.secret) if credential is not None else None}


def _shown(loaded: Loaded) -> Mapping[str, str]:
    return {key: text for key, text, _ in explain(loaded)}
