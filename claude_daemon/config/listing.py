"""Every setting as it is in force, with its origin: what ``claudectl config`` tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from claude_daemon.config.changes import CREDENTIAL, needs_restart
from claude_daemon.config.loading import Loaded
from claude_daemon.config.models import Settings
from claude_daemon.layers.report import explain, texts
from claude_daemon.layers.tree import DEFAULT, Layer, dotted, leaves
from claude_daemon.secret import Secret


def listing(now: Loaded, started: Loaded) -> dict[str, Any]:
    """``now``: what was loaded last; ``started``: what the daemon was started with. Secrets are masked.

    Each of ``values`` is ``{"key","value","text","default","origin","layer","changed","in_force"}``: ``value`` is JSON,
    ``text`` the same as TOML has it and ``default`` what it would be without profile, file, environment and flags (None
    for what has none), ``changed`` whether somebody has made it otherwise, ``in_force`` another text where the new
    value waits for a restart, else None.
    """
    values = {dotted(path): _plain(value) for path, value in leaves(now.settings)}
    defaults, before = texts(Settings()), {key: text for key, text, _ in explain(started)}
    waiting = set(needs_restart(started, now))
    layers = {key: origin.layer for key, origin in now.origins.items()}
    layers[CREDENTIAL] = (DEFAULT if now.credential is None else now.credential.origin).layer
    rows = [
        {
            "key": key,
            "value": values.get(key, text) if key != CREDENTIAL else text,
            "text": text,
            "default": defaults.get(key),
            "origin": origin,
            "layer": layers[key].value,
            "changed": layers[key] is not Layer.DEFAULT and text != defaults.get(key),
            "in_force": before.get(key) if key in waiting else None,
        }
        for key, text, origin in explain(now)
    ]
    return {
        "profile": now.profile,
        "file": str(now.paths.config_file) if now.file_digest is not None else None,
        "values": rows,
    }


def _plain(value: object) -> Any:
    """As JSON has it; a secret is told as ``***``."""
    if isinstance(value, Secret):
        return str(value)
    if isinstance(value, BaseModel | Mapping):
        return {name: _plain(entry) for name, entry in dict(value).items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
