"""The text lane as a whole: finds the CLI, probes it, runs its pool, and tries again when it cannot be started."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.lifecycle import Check
from claude_daemon.core.retry import Backoff
from claude_daemon.core.room import Room
from claude_daemon.core.task import Lane, TaskSpec
from claude_daemon.engine.capabilities import ROWS, Capabilities
from claude_daemon.engine.launch import QUIET
from claude_daemon.engine.lease import TextLease
from claude_daemon.engine.pool import Pool, PoolEvent
from claude_daemon.engine.probe import capabilities_of
from claude_daemon.engine.process import SpawnFailed, run_briefly
from claude_daemon.engine.spawner import Spawner
from claude_daemon.engine.strays import GRACE_S, Strays
from claude_daemon.ports import HealthReport

# An installation that was mended is noticed within a minute; until then each try costs one spawn.
_BACKOFF: Final = Backoff(first_seconds=2.0, limit_seconds=60.0)
_LOGIN_TIMEOUT_S: Final = 20.0


class TextLane:
    """Implements :class:`~claude_daemon.ports.Engine` over a :class:`Pool` that may not be there yet."""

    lane = Lane.TEXT

    def __init__(
        self,
        cli: Path,
        cache: Path,
        spawner: Spawner,
        pool: Pool,
        *,
        without: Sequence[str] = (),
        default_model: str,
        changed: Callable[[], None] = lambda: None,
        owns_process: bool = False,
        known: Callable[[], set[int]] = set,
    ) -> None:
        """``owns_process``: this process is the daemon and a child subreaper, so that a child which is neither a worker
        nor ``known`` is one that a worker left behind, to be ended.
        """
        self.cli = cli
        self.pool = pool
        self._cache = cache
        self.spawner = spawner
        self._without = without
        self._default_model = default_model
        self._changed = changed
        self._error: str | None = None
        self._probed = asyncio.Event()
        self._closing = asyncio.Event()
        self._probing: asyncio.Timeout | None = None
        self._strays = Strays(lambda: spawner.pids | known(), lambda: spawner.nonces) if owns_process else None
        self._next_sweep: asyncio.TimerHandle | None = None
        self.up = False

    def respawn_with(self, *, max_retries: int, request_timeout_s: float, oauth_token: str | None) -> bool:
        """What processes are told from now on; whether those that live were told something else."""
        return self.spawner.apply(max_retries=max_retries, request_timeout_s=request_timeout_s, oauth_token=oauth_token)

    def unsupported(self, spec: TaskSpec) -> Failure | None:
        return self.pool.unsupported(spec)

    def approximated(self, spec: TaskSpec) -> Sequence[str]:
        return self.pool.approximated(spec)

    @property
    def room(self) -> Room:
        return self.pool.room

    def lease(self, spec: TaskSpec) -> TextLease | None:
        return self.pool.lease(spec) if self.up else None

    def unavailable(self) -> Failure | None:
        if self._error is not None:
            return Failure(
                code=Code.ENGINE_UNAVAILABLE,
                message=f"Claude Code cannot be started: {self._error}",
                retry_after_seconds=_BACKOFF.first_seconds,
            )
        return self.pool.unavailable()

    async def run(self) -> None:
        """Probes, then runs the pool until :meth:`close`; a CLI that does not run is tried again with backoff."""
        failures = 0
        while not self._closing.is_set():
            try:
                found = await self._probe()
            except (SpawnFailed, OSError) as error:
                failures += 1
                self._error = str(error)
                self._note()
                self.room.tell()  # those who wait are told that it is for nothing
                await self._pause(_BACKOFF.delay(failures, random.random()))  # noqa: S311 - jitter
                continue
            if found is not None:
                await self._serve(found)
            return

    async def _probe(self) -> Capabilities | None:
        """What the CLI can do; None when :meth:`close` came first."""
        try:
            async with asyncio.timeout(None) as self._probing:
                return await capabilities_of(self.cli, self.spawner, self._cache, self._default_model)
        except TimeoutError:
            return None
        finally:
            self._probing = None

    async def _serve(self, found: Capabilities) -> None:
        self.pool.capabilities = self.spawner.capabilities = found.without(self._without)
        self._error, self.up = None, True
        self._note()
        self.pool.on_end(self._sweep_twice)
        try:
            await self.pool.run()
        finally:
            self.up = False
            if self._next_sweep is not None:
                self._next_sweep.cancel()
            self._sweep(last=True)

    def swept(self) -> None:
        """A process that is not the pool's has ended: what it left behind ends too."""
        if self.up:
            self._sweep_twice()

    def _sweep_twice(self) -> None:
        """A worker has ended, or it is time to look: now for what is plainly a stray, and soon for the rest."""
        if self._strays is not None:
            self._sweep()
            if self._next_sweep is not None:
                self._next_sweep.cancel()
            self._next_sweep = asyncio.get_running_loop().call_later(GRACE_S, self._sweep)

    def _sweep(self, *, last: bool = False) -> None:
        if self._strays is not None and (killed := self._strays.sweep(last=last)):
            self.pool.told(PoolEvent(name="engine.strays_ended", level="warning", fields={"pids": killed}))

    def _note(self) -> None:
        self._probed.set()
        self._changed()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def probed(self) -> None:
        """Waits until the first probe has answered or failed, and with it the first worker."""
        await self._probed.wait()
        if self.up:
            await self.pool.filled()

    def close(self) -> None:
        self._closing.set()
        self._probed.set()
        if self._probing is not None:
            self._probing.reschedule(asyncio.get_running_loop().time())
        self.pool.close()

    def health(self) -> Mapping[str, HealthReport]:
        return {"engine": self._engine_health(), **self.pool.health()}

    def _engine_health(self) -> HealthReport:
        can = self.pool.capabilities
        details: dict[str, Any] = {"cli": str(self.cli), "version": can.version}
        if self._error is not None:
            return HealthReport(
                status=Check.FAIL, reason=f"Claude Code cannot be started: {self._error}", details=details
            )
        if not self.up:
            return HealthReport(status=Check.WARN, reason="Claude Code is being probed", details=details)
        missing = can.missing()
        if missing:
            told = "; ".join(f"{name}: {ROWS[name][1]}" for name in missing)
            return HealthReport(status=Check.WARN, reason=f"without {told}", details={**details, "missing": missing})
        return HealthReport(status=Check.PASS, details=details)


def bundled_cli() -> Path | None:
    """The CLI inside the installed claude-agent-sdk, found without importing it."""
    spec = importlib.util.find_spec("claude_agent_sdk")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "_bundled" / "claude"


async def login_present(cli: Path, environ: Mapping[str, str], cwd: Path) -> bool:
    """Whether ``claude`` finds a login of its own in the user's home (``claude auth status``).

    Being asked, it makes its files there: so it is asked only where it has been before.
    """
    home = os.path.expanduser(environ.get("HOME") or "~")  # noqa: PTH111 - raises nothing where there is none
    config_dir = environ.get("CLAUDE_CONFIG_DIR")
    places = [config_dir] if config_dir else [f"{home}/.claude", f"{home}/.claude.json"]
    if not any(os.path.lexists(place) for place in places):
        return False
    kept = {name: environ[name] for name in ("HOME", "CLAUDE_CONFIG_DIR", "USER") if name in environ}
    env = {"PATH": os.defpath, **QUIET, **kept}
    try:
        status, _ = await run_briefly([str(cli), "auth", "status"], env, cwd, _LOGIN_TIMEOUT_S)
    except SpawnFailed:
        return False
    return status == 0
