"""What can be set, its defaults and its bounds; one model a section. ``etc/config.toml`` explains every key.

Sizes are bytes (or MB where the name says so), times seconds. A value that may be unset is None, written
``"none"``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from claude_daemon.config.fields import (
    Capability,
    Count,
    CountOrZero,
    Domain,
    FilePath,
    Ids,
    Level,
    Maybe,
    Mode,
    ModelName,
    ModelNames,
    Name,
    Names,
    Networks,
    RedisUrl,
    RootPath,
    RootPaths,
    Seconds,
    SocketPath,
    SomeTexts,
    Text,
    Texts,
    TimeZone,
    Url,
    Urls,
    Usd,
)
from claude_daemon.core.worker import MAX_WORKERS
from claude_daemon.layers.fault import CONFLICT, Conflict
from claude_daemon.secret import Secret

MODELS: Final = MappingProxyType(
    {
        "sonnet": "claude-sonnet-5-5",
        "opus": "claude-opus-5-5",
        "haiku": "claude-haiku-5-5",
        "fable": "claude-fable-5-2",
    }
)
"""Aliases as CLI 2.1.330 reports them (2026-11); what the CLI in use reports at start corrects them."""
MAX_DIRECT: Final = 4096
"""Each is a connection to the upstream, and a client's besides: as many as the clients that are accepted by default."""
MICRO_USD: Final = 0.000001
"""Money is counted in these: what is set aside is at least one."""
MAX_TURN_USD: Final = 1_000_000
"""More than any turn can cost; and sums of it are whole numbers that a database can hold."""
MAX_LAME_DUCK_S: Final = 3600
"""Balancers look every few seconds and forget within minutes; a stop that does nothing for an hour is a mistake."""


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
            raise PydanticCustomError(CONFLICT, "{text}", {"text": text, "conflicts": found})
        return self


class Http(Section):
    """The public listener. Port 0 takes any free one."""

    host: Text = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8006
    max_body_bytes: Count = 16 * 1024 * 1024
    allowed_hosts: Texts = ("localhost", "127.0.0.1", "[::1]")
    allowed_origins: Urls = ()
    trusted_proxies: Networks = ()
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

    socket: SocketPath = Path("run/ctl.sock")
    mode: Mode = 0o600
    allowed_uids: Ids = ()
    allowed_gids: Ids = ()


class Engine(Section):
    """Claude Code and the Messages API behind it. ``cli_path`` None: the CLI bundled in claude-agent-sdk."""

    cli_path: Maybe[FilePath] = None
    upstream: Literal["anthropic", "offline", "auto"] = "anthropic"
    base_url: Url = "https://api.anthropic.com"
    default_model: ModelName = "sonnet"
    models: Mapping[ModelName, ModelName] = Field(default_factory=lambda: dict(MODELS))
    workers: Annotated[Count, Field(le=MAX_WORKERS)] = 4
    spares: Annotated[CountOrZero, Field(le=MAX_WORKERS)] = 1
    direct_max: Annotated[Count, Field(le=MAX_DIRECT)] = 64
    # Measured over 900 turns: memory grows from 180 to 335 MB and then no more, latency not at all; a new process
    # costs half a second of one core.
    max_turns_per_worker: Count = 600
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
    """What one agent task may use; in a cgroup of its own, where there can be one, all its processes together."""

    # A parallel build or test run forks some dozens; a fork bomb thousands.
    max_processes: Count = 256
    # The CLI itself takes 0.3 GB; the rest is for compilers and tests.
    # Under 512 MB of data the CLI does not start.
    max_memory_mb: Annotated[Count, Field(ge=1024)] = 4096
    # Larger than any source or artefact worth keeping, smaller than a disk.
    max_file_mb: Count = 1024
    # A checkout with its dependencies.
    work_quota_mb: Count = 8192


class Root(Section):
    """A directory that tasks may work in; only a trusted one may bring its own project settings."""

    path: RootPath
    trusted: bool = False


class McpServer(Section):
    """A server that tasks may name: a command to start, or a URL. Its environment and headers are secrets."""

    command: Maybe[Text] = None
    args: Texts = ()
    env: Mapping[str, Secret] = Field(default_factory=dict)
    url: Maybe[Url] = None
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


class Audit(Section):
    """What was done, in a chain of sealed records."""

    retention_days: Count = 365


class Role(Section):
    """What a key with this role may do, beyond the built-in readonly, standard and full. After ``scopes`` None is no
    rule; the bounds are those of a task."""

    tools: Texts = ()
    approval: Literal["never", "ask", "auto"] = "never"
    scopes: Texts = ()
    routes: Maybe[SomeTexts] = None
    lanes: Maybe[SomeTexts] = None
    models: Maybe[ModelNames] = None
    roots: Maybe[RootPaths] = None
    mcp: Maybe[Names] = None
    max_turns: Maybe[Annotated[Count, Field(le=1000)]] = None
    max_cost_usd: Maybe[Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)]] = None
    max_timeout_s: Maybe[Annotated[float, Field(gt=0, le=7 * 24 * 3600, allow_inf_nan=False)]] = None
    max_priority: Maybe[Annotated[int, Field(ge=0, le=10)]] = None
    concurrent: Maybe[Count] = None


class Limits(Section):
    """Of each key, and of all together; None is no limit."""

    requests_per_minute: Maybe[Count] = None
    tokens_per_minute: Maybe[Count] = None
    concurrent: Maybe[Count] = None
    overall_requests_per_minute: Maybe[Count] = None
    overall_tokens_per_minute: Maybe[Count] = None
    overall_concurrent: Maybe[Count] = None


class Price(Section):
    """USD per million tokens."""

    input: Usd
    output: Usd
    cache_write: Usd
    cache_read: Usd


class DomainBudget(Section):
    """What the keys of one trust domain may spend together."""

    usd_per_day: Maybe[Usd] = None
    usd_per_month: Maybe[Usd] = None


class Budget(Section):
    """What all keys together may spend; None is no limit. ``timezone`` says when a day begins. ``domains``: what those
    of a trust domain may; what one key may is said when it is made."""

    usd_per_day: Maybe[Usd] = None
    usd_per_month: Maybe[Usd] = None
    # What an agent's turn or a long answer costs; one that costs more sets more aside on its way.
    reserve_usd_per_turn: Annotated[float, Field(ge=MICRO_USD, le=MAX_TURN_USD, allow_inf_nan=False)] = 0.25
    timezone: TimeZone = "UTC"
    domains: Mapping[Domain, DomainBudget] = Field(default_factory=dict)


class Drain(Section):
    """How long a stop takes at most: the sum of the three."""

    lame_duck_s: Annotated[float, Field(ge=0, le=MAX_LAME_DUCK_S, allow_inf_nan=False)] = 0
    deadline_s: Seconds = 60
    kill_grace_s: Seconds = 5


class Log(Section):
    """Always to stderr; to ``file`` as well unless that is None."""

    level: Level = "info"
    levels: Mapping[Text, Level] = Field(default_factory=dict)
    format: Literal["json", "console"] = "json"
    file: Maybe[FilePath] = Path("log/daemon.log")


class Telemetry(Section):
    """``otlp_endpoint``: the base URL of an OpenTelemetry collector that takes OTLP over HTTP; None for no traces."""

    otlp_endpoint: Maybe[Url] = None


class Redis(Section):
    """A URL may hold a password, so all of it is secret."""

    url: Maybe[RedisUrl] = None


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
    audit: Audit = Field(default_factory=Audit)
    roles: Mapping[Name, Role] = Field(default_factory=dict)
    limits: Limits = Field(default_factory=Limits)
    prices: Mapping[ModelName, Price] = Field(default_factory=dict)
    budget: Budget = Field(default_factory=Budget)
    drain: Drain = Field(default_factory=Drain)
    log: Log = Field(default_factory=Log)
    telemetry: Telemetry = Field(default_factory=Telemetry)
    redis: Redis = Field(default_factory=Redis)
    webhooks: Webhooks = Field(default_factory=Webhooks)
