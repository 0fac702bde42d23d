"""The settings: what can be set, its defaults and bounds, and where the daemon's files are.

:func:`load` is the one reader of the environment and of ``config.toml``; ``etc/config.toml`` explains every
key. Sizes are bytes (or MB where the name says so), times seconds. A value that may be unset is None, written
``"none"``. Relative paths stand below the home, where ``run/`` and ``log/`` are systemd's directories if it
gave us some.
"""

from __future__ import annotations

import ipaddress
import os
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeVar, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from claude_daemon import layers
from claude_daemon.layers import ConfigError, Conflict, Fault, Layer, Octal, Origin, Secret

__all__ = ["ConfigError", "Credential", "Fault", "Loaded", "Origin", "Paths", "Secret", "Settings", "load"]

Profile = Literal["dev", "staging", "prod"]

MODELS: Final = MappingProxyType(
    {
        "sonnet": "claude-sonnet-5-5",
        "opus": "claude-opus-5-5",
        "haiku": "claude-haiku-5-5",
        "fable": "claude-fable-5-2",
    }
)
"""Aliases as of 2026-11; what the CLI reports at start corrects them."""

PROFILES: Final[Mapping[str, Mapping[str, Mapping[str, str]]]] = MappingProxyType(
    {
        "dev": {"engine": {"upstream": "auto"}, "log": {"format": "console"}},
        "staging": {"engine": {"upstream": "anthropic"}, "log": {"format": "json"}},
        "prod": {"engine": {"upstream": "anthropic"}, "log": {"format": "json"}},
    }
)

FOREIGN: Final = MappingProxyType(
    {"ANTHROPIC_BASE_URL": ("engine", "base_url"), "CLAUDE_DAEMON_SOCKET": ("control", "socket")}
)

MAX_SOCKET_PATH_BYTES = 107
"""``sun_path`` holds 108 bytes, the last one a zero."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The directories that relative paths stand in; all absolute. ``user`` is what ``~`` means."""

    user: Path
    state: Path
    run: Path
    log: Path
    configuration: Path

    def resolve(self, path: Path) -> Path:
        first, *rest = path.parts or (".",)
        if first == "~":
            return self.user.joinpath(*rest)
        if first in ("run", "log"):
            return (self.run if first == "run" else self.log).joinpath(*rest)
        return self.state / path


def _absolute(path: Path) -> Path:
    if not (path.is_absolute() or path.parts[:1] == ("~",)):
        raise ValueError("must be absolute")
    return path


def _resolved(path: Path, info: ValidationInfo) -> Path:
    return info.context.resolve(path) if isinstance(info.context, Layout) else path


def _short(path: Path) -> Path:
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"must be at most {MAX_SOCKET_PATH_BYTES} bytes long; {path} has {size}")
    return path


def _mode(mode: int) -> int:
    if mode & 0o600 != 0o600 or mode > 0o777:
        raise ValueError("must be an octal mode such as 0o600 that lets the owner read and write")
    return mode


def _url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be an http or https URL without query")
    if parts.username or parts.password:
        raise ValueError("must not hold a user or password")
    return url.rstrip("/")


def _redis_url(url: Secret) -> Secret:
    if urlsplit(url.reveal()).scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must be a redis://, rediss:// or unix:// URL")
    return url


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("must be an address or a network such as 10.0.0.0/8") from None
    return text


def _timezone(name: str) -> str:
    if name != "UTC":  # which needs no database
        try:
            ZoneInfo(name)
        except (KeyError, OSError, ValueError):
            raise ValueError("must be a time zone such as UTC or Europe/Berlin") from None
    return name


def _maybe(value: object) -> object:
    return None if value in ("", layers.NONE) else value


Maybe = Annotated[T | None, BeforeValidator(_maybe)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,127}$")]
"""Never begins with a dash: it stands in an argv."""
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
Ids = Annotated[tuple[CountOrZero, ...], Field(strict=False)]
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_resolved)]
Capability = Literal[
    "bare",
    "restricted",
    "permission_prompts",
    "late_bind",
    "clear",
    "set_model",
    "history",
    "interrupt",
    "composed",
]
Level = Literal["debug", "info", "warning", "error", "critical"]


class Section(BaseModel):
    """One table of the configuration: immutable, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    def conflicts(self) -> Iterator[Conflict]:
        """What is wrong between values that are fine alone."""
        yield from ()

    @model_validator(mode="after")
    def _without_conflicts(self) -> Section:
        if found := list(self.conflicts()):
            text = "; ".join(f"{conflict.key} {conflict.message}" for conflict in found)
            raise PydanticCustomError(layers.CONFLICT, "{text}", {"text": text, "conflicts": found})
        return self


class Http(Section):
    """The public listener. Port 0 takes any free one."""

    host: Text = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8006
    max_body_bytes: Count = 16 * 1024 * 1024
    allowed_hosts: Texts = ("localhost", "127.0.0.1", "[::1]")
    allowed_origins: Annotated[tuple[Annotated[str, AfterValidator(_url)], ...], Field(strict=False)] = ()
    trusted_proxies: Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], Field(strict=False)] = ()
    max_connections: Count = 4096
    max_connections_per_peer: Count = 4096
    tls_cert: Maybe[FilePath] = None
    tls_key: Maybe[FilePath] = None
    allow_plaintext: bool = False
    # A client sends its headers in one packet; ten seconds is a bad link, more is somebody holding the door.
    header_timeout_s: Seconds = 10
    # 16 MiB in 30 s is 4.5 Mbit/s.
    body_timeout_s: Seconds = 30
    # Longer than the 60 s after which most proxies drop an idle connection: they close first, so none is
    # reused in the moment we close it.
    keepalive_timeout_s: Seconds = 75
    # 256 waiting at 35 chats/s are 7 s of work; whoever comes later is better told 503 at once.
    max_waiting: Count = 256

    @property
    def accepted_hosts(self) -> frozenset[str]:
        """The host part that requests may carry, in lower case: ``allowed_hosts`` and always ``host``."""
        own = f"[{self.host}]" if ":" in self.host else self.host
        return frozenset(host.lower() for host in (*self.allowed_hosts, own))

    @property
    def loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"

    def conflicts(self) -> Iterator[Conflict]:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing, given = ("tls_key", "tls_cert") if self.tls_cert else ("tls_cert", "tls_key")
            yield Conflict(key=given, message=f"needs {missing} beside it", given=(missing,))
        if not (self.loopback or self.tls_cert or self.tls_key or self.allow_plaintext):
            message = f"is {self.host}, beyond loopback: set tls_cert and tls_key, or allow_plaintext"
            yield Conflict(key="host", message=message, given=("tls_cert", "tls_key", "allow_plaintext"))


class Control(Section):
    """The Unix socket that claudectl speaks to. Root and the daemon's own user are always allowed."""

    socket: Annotated[FilePath, AfterValidator(_short)] = Path("run/ctl.sock")
    mode: Annotated[int, Octal, AfterValidator(_mode)] = 0o600
    allowed_uids: Ids = ()
    allowed_gids: Ids = ()


class Engine(Section):
    """Claude Code and the Messages API behind it. ``cli_path`` None: the CLI bundled in claude-agent-sdk."""

    cli_path: Maybe[FilePath] = None
    upstream: Literal["anthropic", "offline", "auto"] = "anthropic"
    base_url: Annotated[str, AfterValidator(_url)] = "https://api.anthropic.com"
    default_model: ModelName = "sonnet"
    models: Mapping[ModelName, ModelName] = Field(default_factory=lambda: dict(MODELS))
    workers: Count = 4
    spares: CountOrZero = 1
    direct_max: Count = 64
    max_turns_per_worker: Count = 200
    max_worker_age_s: Seconds = 3600
    max_worker_rss_mb: Count = 600
    turn_timeout_s: Seconds = 600
    stall_timeout_s: Seconds = 60
    approval_timeout_s: Seconds = 300
    max_retries: CountOrZero = 2
    idle_session_s: Seconds = 600
    sandbox: Literal["auto", "bwrap", "none"] = "auto"
    # Capabilities of the CLI to do without, whatever its probe says: a way round a CLI that misbehaves.
    without: Annotated[tuple[Capability, ...], Field(strict=False)] = ()

    def conflicts(self) -> Iterator[Conflict]:
        known = {*self.models, *self.models.values()}
        if self.default_model not in known and not self.default_model.startswith("claude-"):
            message = f"is neither an alias nor a model: {self.default_model}"
            yield Conflict(key="default_model", message=message, given=("models",))


class Agent(Section):
    """What one agent task may use."""

    # A parallel build or test run forks some dozens; a fork bomb thousands.
    max_processes: Count = 256
    # The CLI itself takes 0.3 GB; the rest is for compilers and tests.
    max_memory_mb: Count = 4096
    # Larger than any source or artefact worth keeping, smaller than a disk.
    max_file_mb: Count = 1024
    # A checkout with its dependencies.
    work_quota_mb: Count = 8192


class Root(Section):
    """A directory that tasks may work in; only a trusted one may bring its own project settings."""

    path: Annotated[Path, Field(strict=False), AfterValidator(_absolute), AfterValidator(_resolved)]
    trusted: bool = False


class McpServer(Section):
    """A server that tasks may name: a command to start, or a URL. Its environment and headers are secrets."""

    command: Maybe[Text] = None
    args: Texts = ()
    env: Mapping[str, Secret] = Field(default_factory=dict)
    url: Maybe[Annotated[str, AfterValidator(_url)]] = None
    headers: Mapping[str, Secret] = Field(default_factory=dict)

    def conflicts(self) -> Iterator[Conflict]:
        if (self.command is None) == (self.url is None):
            yield Conflict(key="command", message="exactly one of command and url is needed", given=("url",))


class Queue(Section):
    """Tasks that wait. ``wait_timeout_s``: a chat that found no worker by then is answered 503."""

    max_queued: Count = 10_000
    max_queued_per_key: Count = 10_000
    max_attempts: Count = 3
    retention_days: Count = 30
    # Clients give up after one to ten minutes; work begun later is likely thrown away.
    wait_timeout_s: Seconds = 120


class Store(Section):
    """Where tasks, events, keys and the audit live."""

    kind: Literal["sqlite", "redis"] = "sqlite"
    path: FilePath = Path("daemon.db")
    stall_s: Seconds = 10

    def conflicts(self) -> Iterator[Conflict]:
        if self.kind == "redis":
            yield Conflict(key="kind", message='"redis" is not built yet: this version stores in sqlite only')


class Role(Section):
    """What a key with this role may do, beyond the built-in readonly, standard and full."""

    tools: Texts = ()
    approval: Literal["never", "ask", "auto"] = "never"
    scopes: Texts = ()


class Limits(Section):
    """Per key; None is no limit."""

    requests_per_minute: Maybe[Count] = None
    tokens_per_minute: Maybe[Count] = None
    concurrent: Maybe[Count] = None


class Price(Section):
    """USD per million tokens."""

    input: Usd
    output: Usd
    cache_write: Usd
    cache_read: Usd


class Budget(Section):
    """What all keys together may spend; None is no limit. ``timezone`` says when a day begins."""

    usd_per_day: Maybe[Usd] = None
    usd_per_month: Maybe[Usd] = None
    reserve_usd_per_turn: Usd = 0.25
    timezone: Annotated[Text, AfterValidator(_timezone)] = "UTC"


class Drain(Section):
    """How long a stop takes at most: the sum of the three."""

    lame_duck_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    deadline_s: Seconds = 60
    kill_grace_s: Seconds = 5


class Log(Section):
    """Always to stderr; to ``file`` as well unless that is None."""

    level: Level = "info"
    levels: Mapping[Text, Level] = Field(default_factory=dict)
    format: Literal["json", "console"] = "json"
    file: Maybe[FilePath] = Path("log/daemon.log")


class Redis(Section):
    """A URL may hold a password, so all of it is secret."""

    url: Maybe[Annotated[Secret, AfterValidator(_redis_url)]] = None


class Webhooks(Section):
    """``secret`` signs what we send; ``allow_private`` permits receivers on private addresses."""

    secret: Maybe[Secret] = None
    allow_private: bool = False
    timeout_s: Seconds = 5


class Settings(Section):
    """Everything that can be set; one attribute a section."""

    http: Http = Field(default_factory=Http)
    control: Control = Field(default_factory=Control)
    engine: Engine = Field(default_factory=Engine)
    agent: Agent = Field(default_factory=Agent)
    roots: Annotated[tuple[Root, ...], Field(strict=False)] = ()
    mcp: Mapping[Name, McpServer] = Field(default_factory=dict)
    queue: Queue = Field(default_factory=Queue)
    store: Store = Field(default_factory=Store)
    roles: Mapping[Name, Role] = Field(default_factory=dict)
    limits: Limits = Field(default_factory=Limits)
    prices: Mapping[ModelName, Price] = Field(default_factory=dict)
    budget: Budget = Field(default_factory=Budget)
    drain: Drain = Field(default_factory=Drain)
    log: Log = Field(default_factory=Log)
    redis: Redis = Field(default_factory=Redis)
    webhooks: Webhooks = Field(default_factory=Webhooks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where the daemon's files are; all absolute. ``log_file`` None: stderr only."""

    home: Path
    config_file: Path
    database: Path
    local_key: Path
    audit_key: Path
    control_socket: Path
    pid_file: Path
    log_file: Path | None
    engine_dir: Path
    work_dir: Path
    run_dir: Path


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The effective configuration.

    ``origins`` has an entry for every dotted key; ``secrets`` holds every secret found, by dotted key or
    variable, unused credentials too (for masking). ``supervisor`` is CLAUDE_DAEMON_SUPERVISOR.
    """

    settings: Settings
    origins: Mapping[str, Origin]
    paths: Paths
    profile: Profile
    secrets: Mapping[str, Secret]
    credential: Credential | None
    supervisor: str | None


def load(argv_flags: Mapping[str, Any], environ: Mapping[str, str], *, home: Path | None = None) -> Loaded:
    """The configuration that flags, environment and ``config.toml`` give together.

    ``argv_flags`` holds ``config``, ``profile``, ``socket``, ``offline`` and dotted keys (``"http.port"``);
    None and a False ``offline`` mean not given. ``home`` is a flag too: systemd's directories yield to it.
    Reads the files that are named and nothing else. Raises ConfigError with everything that is wrong.
    """
    flags = {name: value for name, value in argv_flags.items() if value is not None}
    faults: list[Fault] = []
    layout = _layout(environ, home)
    profile, profile_origin = _profile(flags.pop("profile", None), environ, faults)
    config_file, named = _config_file(flags.pop("config", None), environ, layout)
    root = layers.table(Settings(), layers.DEFAULT)
    for layer in (
        layers.table(PROFILES[profile], profile_origin),
        _foreign(environ),
        layers.read_toml(config_file, Settings, faults, required=named),
        layers.from_environ(environ, Settings, faults),
        layers.from_flags(_dotted(flags), Settings, faults),
    ):
        root = layers.merge(root, layer, faults)
    settings = layers.validate(Settings, root, faults, context=layout)
    credentials = _credentials(environ, faults)
    if faults or settings is None:
        raise ConfigError(faults)
    values = layers.leaves(settings)
    secrets = {layers.dotted(path): value for path, value in values if isinstance(value, Secret)}
    return Loaded(
        settings=settings,
        origins=layers.origins(settings, root),
        paths=_paths(settings, layout, config_file),
        profile=profile,
        secrets=secrets | {name: credential.secret for name, credential in credentials.items()},
        credential=next(iter(credentials.values()), None),
        supervisor=environ.get("CLAUDE_DAEMON_SUPERVISOR") or None,
    )


def _layout(environ: Mapping[str, str], home: Path | None) -> Layout:
    user = Path(environ.get("HOME") or _passwd_home())
    state = home or Path(environ.get("CLAUDE_DAEMON_HOME") or "~/.claude-daemon")
    state = Path(os.path.abspath(user.joinpath(*state.parts[1:]) if state.parts[:1] == ("~",) else state))  # noqa: PTH100

    def directory(variable: str, otherwise: Path) -> Path:
        """systemd joins several with colons; the first is ours."""
        first = environ.get(variable, "").partition(":")[0]
        return Path(first) if first and home is None else otherwise

    return Layout(
        user=user,
        state=directory("STATE_DIRECTORY", state),
        run=directory("RUNTIME_DIRECTORY", state / "run"),
        log=directory("LOGS_DIRECTORY", state / "log"),
        configuration=directory("CONFIGURATION_DIRECTORY", state),
    )


def _passwd_home() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return "/"


def _profile(flag: str | None, environ: Mapping[str, str], faults: list[Fault]) -> tuple[Profile, Origin]:
    """The profile, and the origin of the values that it brings."""
    asked = flag or environ.get("CLAUDE_DAEMON_PROFILE") or "dev"
    for profile in get_args(Profile):
        if profile == asked:
            return profile, Origin(layer=Layer.PROFILE, where=profile)
    where = "--profile" if flag else "CLAUDE_DAEMON_PROFILE"
    message = f"unknown profile {asked!r}{layers.nearest(asked, get_args(Profile)) or ': dev, staging or prod'}"
    faults.append(Fault(where=where, message=message))
    return "dev", Origin(layer=Layer.PROFILE, where="dev")


def _config_file(flag: object, environ: Mapping[str, str], layout: Layout) -> tuple[Path, bool]:
    """The file, and whether it was named and must exist. A named one may be relative to where we stand."""
    asked = str(flag or environ.get("CLAUDE_DAEMON_CONFIG") or "")
    if not asked:
        return layout.configuration / "config.toml", False
    path = Path(asked)
    return Path.cwd() / (layout.resolve(path) if path.parts[0] == "~" else path), True


def _foreign(environ: Mapping[str, str]) -> layers.Table:
    """Variables that set a key without being named for it; our file and our own variables come over them."""
    found: dict[str, layers.Node] = {}
    for name, (section, key) in FOREIGN.items():
        if value := environ.get(name):
            found[section] = layers.table({key: value}, Origin(layer=Layer.ENVIRONMENT, where=name))
    return layers.Table(entries=found, origin=Origin(layer=Layer.ENVIRONMENT))


def _dotted(flags: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(flag, dotted key, value) of each."""
    for name, value in flags.items():
        if name == "socket":
            yield "--socket", "control.socket", value
        elif name != "offline":
            yield f"--{name}", name, value
        elif value:
            yield "--offline", "engine.upstream", "offline"


def _credentials(environ: Mapping[str, str], faults: list[Fault]) -> dict[str, Credential]:
    """All that are set, by variable, the one to use first."""
    found = {name: layers.read_secret(name, environ, faults) for name in CREDENTIALS}
    return {
        name: Credential(kind=CREDENTIALS[name], secret=leaf.value, origin=leaf.origin)
        for name, leaf in found.items()
        if leaf is not None
    }


def _paths(settings: Settings, layout: Layout, config_file: Path) -> Paths:
    return Paths(
        home=layout.state,
        config_file=config_file,
        database=settings.store.path,
        local_key=layout.state / "local.key",
        audit_key=layout.state / "audit.key",
        control_socket=settings.control.socket,
        pid_file=layout.run / "daemon.pid",
        log_file=settings.log.file,
        engine_dir=layout.state / "engine",
        work_dir=layout.state / "work",
        run_dir=layout.run,
    )
