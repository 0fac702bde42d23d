"""The headers that a credential becomes. They are added here and in no other place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class CredentialKind(StrEnum):
    """Where the API expects it; an OAuth token or a login is used by the CLI itself and never comes here."""

    API_KEY = "api_key"
    AUTH_TOKEN = "auth_token"  # noqa: S105 - the name of a kind


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class UpstreamCredential:
    """A key of the Messages API; its repr tells the kind alone."""

    kind: CredentialKind
    secret: str

    def __repr__(self) -> str:
        return f"<UpstreamCredential {self.kind}>"

    def headers(self) -> Mapping[str, str]:
        if self.kind is CredentialKind.API_KEY:
            return {"x-api-key": self.secret}
        return {"Authorization": f"Bearer {self.secret}"}
