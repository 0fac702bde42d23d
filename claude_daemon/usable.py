"""Whether settings that are well formed can be used: roles, secrets, addresses, certificates, sockets."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping

from claude_daemon.config import Settings
from claude_daemon.core.role import Role
from claude_daemon.core.role import roles as all_roles
from claude_daemon.telemetry.tracing import missing
from claude_daemon.upstream.webhook import signing_key


class BadSetting(ValueError):
    """A setting that is well formed and cannot be used; ``str()`` names it, and says why."""


def validate(settings: Settings) -> None:
    """Looks at what a reload would bring into force and could fail. Raises BadSetting, with all that is wrong."""
    if found := list(_unusable(settings)):
        raise BadSetting("; ".join(found))


def faults(settings: Settings) -> list[str]:
    """All for which a start would fail, though each setting is well formed; as far as it can be told without one."""
    found = list(_unusable(settings))
    try:
        tls(settings)
    except BadSetting as error:
        found.append(str(error))
    return found


def _unusable(settings: Settings) -> Iterator[str]:
    yield from _unusable_roles(settings)
    secret, url = settings.webhooks.secret, settings.redis.url
    if settings.telemetry.otlp_endpoint is not None and (why := missing()) is not None:
        yield f"telemetry.otlp_endpoint: {why}"
    if secret is not None:
        try:
            signing_key(secret.reveal())
        except ValueError as error:
            yield f"webhooks.secret: {error}"
    if url is not None:
        from claude_daemon.store.redis import Address, BadAddress

        try:
            Address.of(url)
        except BadAddress as error:
            yield f"redis.url: {error}"


def roles(settings: Settings) -> Mapping[str, Role]:
    """Raises BadSetting for the first that cannot be what it says."""
    for why in _unusable_roles(settings):
        raise BadSetting(why)
    return all_roles(settings.roles)


def _unusable_roles(settings: Settings) -> Iterator[str]:
    """By its own words, or by what it names and nobody has configured."""
    known = {root.path for root in settings.roots}
    for name, role in settings.roles.items():
        try:
            all_roles({name: role})
        except ValueError as error:
            yield str(error)
        for path in role.roots or ():
            if path not in known:
                yield f"roles.{name}.roots: {path} is none of [[roots]]"
        for server in role.mcp or ():
            if server not in settings.mcp:
                yield f"roles.{name}.mcp: there is no [mcp.{server}]"


def hold_to_loopback(sockets: Iterable[socket.socket]) -> None:
    """A configuration beyond loopback was refused already; a socket that was given to us was not. Raises BadSetting."""
    for sock in sockets:
        address = sock.getsockname()[0]
        if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            why = "the socket that was handed over is beyond loopback: set http.tls_cert and http.tls_key, or this"
            raise BadSetting(f"http.allow_plaintext: {why} ({address})")


class Certificate:
    """What the public port speaks TLS with. A renewed one serves the handshakes that come after it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.listening = self.current = context
        context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in every handshake, whether the client has named a server or not."""
        connection.context = self.current


def tls(settings: Settings) -> Certificate | None:
    """What the public port speaks TLS with, None if it does not. Raises BadSetting."""
    cert, key = settings.http.tls_cert, settings.http.tls_key
    if cert is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key, password="")  # one that needs a password fails here and asks nobody
    except OSError as error:
        raise BadSetting(f"http.tls_cert {cert}, http.tls_key {key}: {error.strerror or error}") from error
    return Certificate(context)
