"""The credential: what the upstream knows us by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from claude_daemon.layers import Fault, Origin
from claude_daemon.layers.sources import read_secret
from claude_daemon.secret import Secret

CredentialKind = Literal["api_key", "auth_token", "oauth_token"]

CREDENTIALS: Final[Mapping[str, CredentialKind]] = MappingProxyType(
    {
        "ANTHROPIC_API_KEY": "api_key",
        "ANTHROPIC_AUTH_TOKEN": "auth_token",
        "CLAUDE_CODE_OAUTH_TOKEN": "oauth_token",
    }
)
"""The first that is set is the credential."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """What the upstream knows us by. An ``oauth_token`` never leaves the CLI."""

    kind: CredentialKind
    secret: Secret
    origin: Origin


def credentials_in(environ: Mapping[str, str], faults: list[Fault]) -> dict[str, Credential]:
    """All that are set, by variable, the one to use first."""
    found = {name: read_secret(name, environ, faults) for name in CREDENTIALS}
    return {
        name: Credential(kind=CREDENTIALS[name], secret=leaf.value, origin=leaf.origin)
        for name, leaf in found.items()
        if leaf is not None
    }
