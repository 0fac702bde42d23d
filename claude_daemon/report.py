"""How the whole is: the checks that concern more than one part, and the document of ``claudectl status``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from claude_daemon import __version__
from claude_daemon.configuration import Configuration
from claude_daemon.core.lifecycle import Check
from claude_daemon.core.worker import Start
from claude_daemon.engine.agent import AgentLane
from claude_daemon.engine.lane import TextLane
from claude_daemon.engine.launch import Access
from claude_daemon.engine.session import SessionLane
from claude_daemon.ports import HealthReport
from claude_daemon.service import rules
from claude_daemon.service.credential import CredentialStanding
from claude_daemon.service.dispatch import Dispatcher, Run
from claude_daemon.service.health import Health
from claude_daemon.service.keys import KeyDesk
from claude_daemon.service.outside import Outside
from claude_daemon.service.space import Space, disk_check
from claude_daemon.sources import Source
from claude_daemon.telemetry.logging import LogHandle
from claude_daemon.telemetry.loop_lag import LoopLag
from claude_daemon.upstream.direct import DirectEngine


@dataclass(slots=True, kw_only=True)
class Report:
    """Reads the parts when it is asked; keeps nothing. ``source`` changes when its credential does."""

    configuration: Configuration
    source: Source
    text: TextLane
    direct: DirectEngine | None
    agents: AgentLane
    sessions: SessionLane
    dispatcher: Dispatcher
    health: Health
    keys: KeyDesk
    credential: CredentialStanding
    loop_lag: LoopLag
    disk: Outside[Sequence[Space]]
    queue: Callable[[], rules.Queue]
    paused: Callable[[], bool]
    url: str
    supervisor: str
    log: LogHandle

    def engine_checks(self) -> Mapping[str, HealthReport]:
        """The text lane's checks; a CLI that cannot be started is no blocker while the direct lane works."""
        checks = {**self.text.health(), **self.agents.health(), **self.sessions.health()}
        engine = checks["engine"]
        if engine.status is Check.FAIL and self.direct is not None:
            reason = f"{engine.reason}; the direct lane works"
            engine = HealthReport(status=Check.WARN, reason=reason, details=engine.details)
        engine = rules.engine(engine, crashes=self.text.pool.crashes)
        if self.source.kind == "none":  # whatever else is wrong, nobody can be answered
            engine = HealthReport(status=Check.FAIL, reason=_NO_CREDENTIAL, details=engine.details)
        more = {"credential": self.source.kind, "sandbox": "bwrap" if self.agents.missing is None else "none"}
        checks["engine"] = rules.with_details(engine, more)
        checks["worker_pool"] = rules.queue(checks["worker_pool"], self.queue())
        return checks

    def auth_check(self) -> Mapping[str, HealthReport]:
        """The credential that we show to the upstream, and the keys that are shown to us."""
        source = self.source
        details = {
            "kind": source.kind,
            "origin": source.origin,
            "upstream": source.name,
            "refused_5min": self.credential.refused_recently,
            "keys": self.keys.counts(),
        }
        if source.kind == "none":
            return {"auth": HealthReport(status=Check.FAIL, reason=_NO_CREDENTIAL, details=details)}
        told = "the offline model answers" if source.name == "offline" else ""
        if source.access is not Access.BROKER:
            told = "a login is the CLI's own: every key is in one trust domain, and no key has tools"
        report = HealthReport(status=Check.PASS, reason=told, details=details)
        status, reason = self.credential.judged()
        return {"auth": rules.made_worse(report, status, reason)}

    def machine_checks(self) -> Mapping[str, HealthReport]:
        """What the daemon runs on."""
        return {"disk": disk_check(self.disk), "event_loop": rules.event_loop(self.loop_lag.recent_seconds)}

    def log_check(self) -> Mapping[str, HealthReport]:
        """Lines that are lost are no reason to do less; somebody should know."""
        why = "" if self.log.scarce is None else f"access lines are left out: {self.log.scarce}"
        status = Check.WARN if why else Check.PASS
        return {"log": HealthReport(status=status, reason=why, details=self.log.standing())}

    def status(self) -> dict[str, Any]:
        """Everything ``claudectl status`` shows."""
        started, pool = self.configuration.started, self.text.pool
        lanes = (pool, self.agents, self.sessions)
        document = self.health.document(details=True)
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": document["state"],
            "uptime_seconds": document["uptime_seconds"],
            "profile": started.profile,
            "supervisor": self.supervisor,
            "config": self.configuration.document(),
            "url": self.url,
            "home": str(started.paths.home),
            "key_file": str(started.paths.local_key),
            "upstream": self.source.name,
            "base_url": self.source.base_url,
            "credential": {"kind": self.source.kind, "origin": self.source.origin},
            "cli": {
                "path": str(self.text.cli),
                "version": pool.capabilities.version,
                "missing": pool.capabilities.missing(),
            },
            "lanes": self._lanes(),
            "turns": {"running": pool.room.taken, "limit": pool.room.limit},
            "workers": pool.counts(),
            "agents": self.agents.counts(),
            "sessions": self.sessions.counts(),
            "queue": {
                "waiting": self.dispatcher.waiting,
                "running": self.dispatcher.running,
                "queued": self.dispatcher.queued,
                "paused": self.paused(),
            },
            "starts": {start.value: sum(lane.starts[start.value] for lane in lanes) for start in Start},
            "log": self.log.standing(),
            "checks": document["checks"],
        }

    def _lanes(self) -> list[str]:
        """Those that serve anybody: the direct lane, agents and sessions need a key that is the daemon's to use."""
        agents = ["agent", "session"] if self.text.spawner.brokered else []
        return [*(["direct"] if self.direct is not None else []), "text", *agents]

    def workers(self) -> list[dict[str, Any]]:
        """Every process of every lane, for ``claudectl workers list``: with the task that has it, and how that found
        it."""
        told = [*self.text.pool.listing(), *self.agents.listing(), *self.sessions.listing()]
        runs = self.dispatcher.by_worker
        return [{**_NOBODYS, **one, **_whose(runs.get(one["id"]))} for one in told]


_NO_CREDENTIAL: Final = "no credential: set ANTHROPIC_API_KEY (or _FILE), or log in with claude"
_NOBODYS: Final = {"start": None, "task_id": None, "session_id": None}


def _whose(run: Run | None) -> Mapping[str, Any]:
    return {} if run is None else {"start": run.start, "task_id": run.task.id}
