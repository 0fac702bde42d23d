"""Where answers come from: the API with a key of ours, the CLI with a login of its own, or the offline model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from claude_daemon.config import Credential, Loaded
from claude_daemon.engine.lane import login_present
from claude_daemon.engine.launch import Access
from claude_daemon.offline import OfflineModel
from claude_daemon.upstream.credential import CredentialKind, UpstreamCredential


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """``credential`` None: none, or the CLI has its own (``access``). ``kind`` and ``origin`` are for people."""

    name: str
    base_url: str
    access: Access
    kind: str
    origin: str
    credential: UpstreamCredential | None = None
    oauth_token: str | None = field(default=None, repr=False)

    @property
    def in_force(self) -> UpstreamCredential:
        """Only where we hold one."""
        assert self.credential is not None
        return self.credential

    def renewed(self, credential: Credential | None) -> Source:
        """The same with a rotated credential; as it is where it does not live on one of the configuration's."""
        if credential is None or (self.credential is None and self.oauth_token is None) or self.name == "offline":
            return self
        return _of_credential(credential, self.base_url)


async def find_source(loaded: Loaded, cli: Path, environ: Mapping[str, str], stack: AsyncExitStack) -> Source:
    """The one that the configuration means. An offline model is started on ``stack``."""
    engine = loaded.settings.engine
    if engine.upstream == "offline":
        return await _offline(stack)
    if loaded.credential is not None:
        return _of_credential(loaded.credential, engine.base_url)
    if await login_present(cli, environ, loaded.paths.engine_dir):
        return Source(name="anthropic", base_url=engine.base_url, access=Access.LOGIN, kind="login", origin="claude")
    if engine.upstream == "auto":
        return await _offline(stack)
    return Source(name="anthropic", base_url=engine.base_url, access=Access.BROKER, kind="none", origin="")


async def _offline(stack: AsyncExitStack) -> Source:
    model = await stack.enter_async_context(OfflineModel())
    key = UpstreamCredential(kind=CredentialKind.API_KEY, secret=model.api_key)
    return Source(
        name="offline",
        base_url=model.base_url,
        access=Access.BROKER,
        kind="api_key",
        origin="offline model",
        credential=key,
    )


def _of_credential(credential: Credential, base_url: str) -> Source:
    oauth = credential.kind == "oauth_token"  # never leaves the CLI
    secret = credential.secret.reveal()
    return Source(
        name="anthropic",
        base_url=base_url,
        access=Access.OAUTH if oauth else Access.BROKER,
        kind=credential.kind,
        origin=str(credential.origin),
        credential=None if oauth else UpstreamCredential(kind=CredentialKind(credential.kind), secret=secret),
        oauth_token=secret if oauth else None,
    )
