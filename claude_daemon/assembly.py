"""How the larger parts are made from the settings; :mod:`~claude_daemon.daemon` decides which, and runs them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from claude_daemon import __version__, journal
from claude_daemon.api.anthropic import CountTokens
from claude_daemon.api.chat import BodyLimits
from claude_daemon.api.control import ControlSettings
from claude_daemon.api.forwarded import networks
from claude_daemon.api.server import Limits
from claude_daemon.config import Loaded, Settings
from claude_daemon.config.models import Budget as BudgetSection
from claude_daemon.config.models import DomainBudget
from claude_daemon.core.budget import Budget, micro_usd
from claude_daemon.core.errors import Failure, Refusal
from claude_daemon.core.ids import new_id
from claude_daemon.core.limits import Rates
from claude_daemon.core.list_prices import LIST_PRICES
from claude_daemon.core.price import Price, told_price
from claude_daemon.core.task import TaskSpec
from claude_daemon.engine.agent import AgentLane, AgentSettings
from claude_daemon.engine.capabilities import Capabilities
from claude_daemon.engine.cgroup import Cgroups, NotDelegated
from claude_daemon.engine.lane import TextLane
from claude_daemon.engine.pool import Pool, PoolEvent, PoolSettings
from claude_daemon.engine.sandbox import Limits as AgentLimits
from claude_daemon.engine.sandbox import find_bwrap
from claude_daemon.engine.session import SessionLane, SessionSettings
from claude_daemon.engine.spawner import EngineSite, Spawner
from claude_daemon.layers import Layer
from claude_daemon.ports import Gateway, McpServer
from claude_daemon.service.budget import BudgetSettings
from claude_daemon.service.drain import DrainSettings
from claude_daemon.service.limits import LimitSettings
from claude_daemon.service.outside import Outside
from claude_daemon.service.space import Space, measured
from claude_daemon.sources import Source
from claude_daemon.telemetry.tracing import NotInstalled, Traces
from claude_daemon.upstream.client import MessagesClient, UpstreamFailed, passed_on
from claude_daemon.upstream.direct import DirectSettings
from claude_daemon.upstream.mcp import HttpServer
from claude_daemon.usable import BadSetting
from claude_daemon.wire.text_lane import text_lane_unsupported

if TYPE_CHECKING:
    from claude_daemon.store.redis import RedisLink

_MICRO: Final = 1_000_000


def ids(prefix: str) -> str:
    """A fresh id, see :func:`~claude_daemon.core.ids.new_id`."""
    return new_id(prefix, milliseconds=time.time_ns() // 1_000_000, randbytes=secrets.token_bytes)


def text_lane(
    loaded: Loaded,
    cli: Path,
    source: Source,
    gateway: Gateway,
    environ: Mapping[str, str],
    *,
    told: Callable[[PoolEvent], None],
    changed: Callable[[], None],
    happened: Callable[[PoolEvent], None],
    owns_process: bool,
    known: Callable[[], set[int]],
) -> TextLane:
    """The text lane, not yet running. Ends what workers an earlier daemon has left behind.

    Of the processes of every lane ``told`` hears what is worth a line or a number, and ``happened`` what becomes of
    them. ``owns_process`` and ``known``: see :class:`~claude_daemon.engine.lane.TextLane`.
    """
    engine, directory = loaded.settings.engine, loaded.paths.engine_dir
    site = EngineSite(
        cli=cli,
        directory=directory,
        access=source.access,
        max_retries=engine.max_retries,
        request_timeout_s=engine.turn_timeout_s,
        environ=environ,
        base_url=source.base_url,
        oauth_token=source.oauth_token,
    )
    nothing_known = Capabilities()
    spawner = Spawner(site, gateway, ids, nothing_known)
    if old := spawner.end_old_workers():
        journal.log.warning("engine.old_workers_ended", pids=old)

    def heard(event: PoolEvent) -> None:
        told(event)
        happened(event)
        if not event.name.endswith(".stderr"):
            changed()

    pool = Pool(
        pool_settings(loaded.settings),
        spawner,
        capabilities=nothing_known,
        default_model=engine.models.get(engine.default_model, engine.default_model),
        unsupported=_text_unsupported,
        told=heard,
    )
    return TextLane(
        cli,
        directory / "capabilities.json",
        spawner,
        pool,
        without=engine.without,
        default_model=pool.default_model,
        changed=changed,
        owns_process=owns_process,
        known=known,
    )


def cgroups(home: Path) -> Cgroups | None:
    """Those for agents, the daemon moved out of their way; None where there can be none, which is written down."""
    try:
        return Cgroups.take(home)
    except NotDelegated as why:
        journal.no_cgroups(str(why), failed=False)
    except OSError as error:
        journal.no_cgroups(str(error), failed=True)
    return None


def agent_lane(
    loaded: Loaded,
    text: TextLane,
    *,
    exposed: Callable[[], bool],
    may_use: Callable[[str, str], bool],
    cgroups: Cgroups | None = None,
) -> AgentLane:
    """The agent lane, over the text lane's CLI and bookkeeping; its sandbox is not tried yet."""
    return AgentLane(
        agent_settings(loaded),
        text,
        loaded.paths.engine_dir,
        unsupported=_agent_unsupported,
        price=price_of(loaded.settings),
        remote=HttpServer,
        exposed=exposed,
        may_use=may_use,
        cgroups=cgroups,
    )


def session_lane(loaded: Loaded, text: TextLane, agents: AgentLane) -> SessionLane:
    """The session lane, in the agent lane's sandbox."""
    return SessionLane(session_settings(loaded.settings), text, agents, loaded.paths.engine_dir / "sessions")


def session_settings(settings: Settings) -> SessionSettings:
    engine = settings.engine
    return SessionSettings(
        idle_s=engine.idle_session_s,
        turn_timeout_s=engine.turn_timeout_s,
        max_turns_per_worker=engine.max_turns_per_worker,
        max_worker_age_s=engine.max_worker_age_s,
        max_worker_rss_mb=engine.max_worker_rss_mb,
    )


def agent_settings(loaded: Loaded) -> AgentSettings:
    settings, profile, paths = loaded.settings, loaded.profile, loaded.paths
    engine, agent = settings.engine, settings.agent
    files = (
        paths.database,
        paths.local_key,
        paths.audit_key,
        paths.control_socket,
        paths.config_file,
        paths.log_file,
    )
    own = (paths.home, paths.engine_dir, paths.run_dir, *files)
    return AgentSettings(
        spares=engine.spares,
        max_spare_age_s=engine.max_worker_age_s,
        stall_timeout_s=engine.stall_timeout_s,
        roots=tuple(root.path for root in settings.roots),
        trusted=frozenset(root.path for root in settings.roots if root.trusted),
        servers=mcp_servers(settings),
        private=tuple(path.resolve() for path in own if path is not None),
        limits=AgentLimits(
            max_processes=agent.max_processes, max_memory_mb=agent.max_memory_mb, max_file_mb=agent.max_file_mb
        ),
        work_quota_mb=agent.work_quota_mb,
        bwrap=None if engine.sandbox == "none" else find_bwrap(),
        wanted=engine.sandbox != "none",
        required=engine.sandbox == "bwrap" or (engine.sandbox == "auto" and profile != "dev"),
    )


def mcp_servers(settings: Settings) -> dict[str, McpServer]:
    """By name."""
    return {
        name: McpServer(
            name=name,
            command=server.command,
            args=server.args,
            env={key: value.reveal() for key, value in server.env.items()},
            url=server.url,
            headers={key: value.reveal() for key, value in server.headers.items()},
        )
        for name, server in settings.mcp.items()
    }


def price_of(settings: Settings) -> Callable[[str], Price | None]:
    """The price of a model, by its id with or without the date of its release: the configuration's, else the list
    price. One that is told by alias is that of the model it stands for."""
    own = {
        settings.engine.models.get(name, name): Price(
            input=round(price.input * _MICRO),
            output=round(price.output * _MICRO),
            cache_write=round(price.cache_write * _MICRO),
            cache_read=round(price.cache_read * _MICRO),
        )
        for name, price in settings.prices.items()
    }
    known = {**LIST_PRICES, **own}
    return lambda model: told_price(model, known.get)


def disk(loaded: Loaded) -> Outside[Sequence[Space]]:
    """What health measures: wherever the daemon writes."""
    return Outside(partial(measured, loaded.paths.written), name="disk", monotonic=time.monotonic)


def budget_settings(settings: Settings) -> BudgetSettings:
    budget = settings.budget
    return BudgetSettings(
        overall=_budget(budget),
        domains={name: _budget(domain) for name, domain in budget.domains.items()},
        turn_micro_usd=round(budget.reserve_usd_per_turn * _MICRO),
        zone=UTC if budget.timezone == "UTC" else ZoneInfo(budget.timezone),  # which needs no database
    )


def _budget(told: DomainBudget | BudgetSection) -> Budget:
    return Budget(day_micro_usd=micro_usd(told.usd_per_day), month_micro_usd=micro_usd(told.usd_per_month))


def limit_settings(settings: Settings) -> LimitSettings:
    told = settings.limits
    return LimitSettings(
        per_key=Rates(
            requests_per_minute=told.requests_per_minute,
            tokens_per_minute=told.tokens_per_minute,
            concurrent=told.concurrent,
        ),
        overall=Rates(
            requests_per_minute=told.overall_requests_per_minute,
            tokens_per_minute=told.overall_tokens_per_minute,
            concurrent=told.overall_concurrent,
        ),
    )


def pool_settings(settings: Settings) -> PoolSettings:
    engine = settings.engine
    return PoolSettings(
        workers=engine.workers,
        spares=engine.spares,
        max_turns_per_worker=engine.max_turns_per_worker,
        max_worker_age_s=engine.max_worker_age_s,
        max_worker_rss_mb=engine.max_worker_rss_mb,
        stall_timeout_s=engine.stall_timeout_s,
        turn_timeout_s=engine.turn_timeout_s,
    )


def models(loaded: Loaded, told: Mapping[str, str]) -> dict[str, str]:
    """Alias → model id: the shipped table as the CLI corrects it (``told``: id → alias), and what somebody set."""
    configured = loaded.settings.engine.models
    own = {name for name in configured if loaded.origins[f"engine.models.{name}"].layer is not Layer.DEFAULT}
    corrected = {alias: model for model, alias in told.items() if alias not in own}
    return {**configured, **corrected}


def _text_unsupported(spec: TaskSpec) -> Failure | None:
    return text_lane_unsupported(spec.request)


def _agent_unsupported(spec: TaskSpec) -> Failure | None:
    """The request itself is the text lane's: tools and directories stand beside it."""
    return text_lane_unsupported(spec.request, lane=spec.lane.value)


def direct_settings(settings: Settings) -> DirectSettings:
    engine = settings.engine
    return DirectSettings(
        direct_max=engine.direct_max,
        stall_timeout_s=engine.stall_timeout_s,
        turn_timeout_s=engine.turn_timeout_s,
    )


def body_limits(settings: Settings) -> BodyLimits:
    return BodyLimits(max_bytes=settings.http.max_body_bytes, timeout_s=settings.http.body_timeout_s)


def drain_settings(settings: Settings) -> DrainSettings:
    return DrainSettings(lame_duck_s=settings.drain.lame_duck_s, grace_s=settings.drain.kill_grace_s)


def control_settings(settings: Settings) -> ControlSettings:
    control = settings.control
    return ControlSettings(
        allowed_uids=frozenset(control.allowed_uids),
        allowed_gids=frozenset(control.allowed_gids),
        deadline_s=settings.drain.deadline_s,
    )


def limits(settings: Settings) -> Limits:
    http = settings.http
    return Limits(
        max_body_bytes=http.max_body_bytes,
        max_connections=http.max_connections,
        max_connections_per_peer=http.max_connections_per_peer,
        trusted_proxies=networks(http.trusted_proxies),
        header_timeout_s=http.header_timeout_s,
        body_timeout_s=http.body_timeout_s,
        keepalive_timeout_s=http.keepalive_timeout_s,
    )


def redis_link(
    settings: Settings, *, told: Callable[[str, Mapping[str, Any]], None], changed: Callable[[], None]
) -> RedisLink | None:
    """The watched connection to Redis, None where none is configured: then nothing of its client is loaded.

    Raises BadSetting.
    """
    url = settings.redis.url
    if url is None:
        return None
    from claude_daemon.store.redis import BadAddress, RedisLink

    try:
        return RedisLink(url, told=told, changed=changed)
    except BadAddress as error:
        raise BadSetting(f"redis.url: {error}") from error


def traces(endpoint: str) -> Traces:
    """What sends spans to a collector. Raises BadSetting where the extra for it is not installed."""
    try:
        return Traces.open(endpoint, version=__version__)
    except NotInstalled as error:
        raise BadSetting(f"telemetry.otlp_endpoint: {error}") from error


def counter(client: MessagesClient) -> CountTokens:
    """Asks the upstream to count tokens."""

    async def count(body: bytes, headers: Mapping[str, str]) -> bytes:
        try:
            async with client.call("/v1/messages/count_tokens", body, passed_on(headers)) as response:
                return await response.read()
        except UpstreamFailed as failed:
            raise Refusal(failed.failure) from failed

    return count
