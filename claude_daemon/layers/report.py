"""What the effective configuration is, for people (``check-config``) and as a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel

from claude_daemon.layers.schema import NONE, Octal, bare, type_at
from claude_daemon.layers.tree import DEFAULT, dotted, leaves
from claude_daemon.secret import Secret

if TYPE_CHECKING:
    from claude_daemon.config import Loaded


def explain(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Every effective value as (dotted key, value as TOML writes it, origin); secrets as ``***``.

    The last row is the credential: its kind and where it was found.
    """
    rows = [(key, text, str(loaded.origins[key])) for key, text in texts(loaded.settings).items()]
    credential = loaded.credential
    if credential is None:
        return [*rows, ("credential", NONE, str(DEFAULT))]
    return [*rows, ("credential", f"{credential.kind} ***", str(credential.origin))]


def texts(settings: BaseModel) -> dict[str, str]:
    """Every value by dotted key, as TOML writes it; secrets as ``***``."""
    found = {}
    for path, value in leaves(settings):
        notes = bare(type_at(type(settings), path))[1]
        octal = value is not None and any(note is Octal for note in notes)
        found[dotted(path)] = f"0o{value:o}" if octal else _shown(value)
    return found


def _shown(value: object) -> str:
    if value is None or isinstance(value, Secret):
        return NONE if value is None else str(value)
    if isinstance(value, BaseModel | Mapping):
        inside = ", ".join(f"{name} = {_shown(entry)}" for name, entry in dict(value).items())
        return f"{{{inside}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    return json.dumps(value, default=str)


def digest(loaded: Loaded) -> str:
    """SHA-256 in hex of all effective values, the credential included; secrets enter by their own digest."""
    credential = loaded.credential
    effective = {
        "settings": loaded.settings,
        "credential": credential and (credential.kind, credential.secret),
        "profile": loaded.profile,
    }
    text = json.dumps(effective, default=_digestible, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digestible(value: object) -> object:
    if isinstance(value, Secret):
        return value.digest()
    return dict(value) if isinstance(value, BaseModel | Mapping) else str(value)
