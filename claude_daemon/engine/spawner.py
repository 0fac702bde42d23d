"""Makes workers: a directory, an account with the gateway, a launch, a process, an entry in the ledger."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from claude_daemon.core.agent import AgentSpec
from claude_daemon.engine.capabilities import Capabilities
from claude_daemon.engine.launch import NONCE_VARIABLE, Access, Launch, argv, environment, held_settings
from claude_daemon.engine.ledger import Ledger
from claude_daemon.engine.plan import Shape
from claude_daemon.engine.process import Process, Received
from claude_daemon.engine.removal import remove_tree
from claude_daemon.engine.worker import Worker
from claude_daemon.ports import Gateway


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSite:
    """Where and how workers live. ``oauth_token`` is set for :attr:`Access.OAUTH` alone.

    ``base_url`` is for logins that reach the API through another address; with the broker it is the account's.
    """

    cli: Path
    directory: Path
    access: Access
    max_retries: int
    request_timeout_s: float
    environ: Mapping[str, str] = field(repr=False)
    base_url: str | None = None
    oauth_token: str | None = field(default=None, repr=False)


W = TypeVar("W", bound=Worker)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is executed, where, and with which descriptors kept open."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    pass_fds: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a session's process goes on with, see :class:`~claude_daemon.engine.launch.Launch`. ``config_dir``: where
    its transcript is; it outlives the process."""

    config_dir: Path
    session_id: str | None = None
    resume: str | None = None
    fork: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outfit:
    """What an agent's process has beyond a text worker's. ``enclose`` puts its command into the sandbox.

    ``conversation`` None: it keeps none.
    """

    agent: AgentSpec
    add_dirs: tuple[Path, ...]
    enclose: Callable[[Command, Launch], Command]
    conversation: Conversation | None = None


class Spawner:
    """``prepare`` is synchronous and cannot fail; ``spawn`` starts the process; ``forget`` cleans up after it."""

    def __init__(
        self, site: EngineSite, gateway: Gateway, ids: Callable[[str], str], capabilities: Capabilities
    ) -> None:
        self.capabilities = capabilities
        self.prepared: Callable[[Launch], None] = lambda launch: None
        """Hears of each launch when its directory is there and its process is not."""
        self.processes: set[Process | None] = set()  # until they have ended and are reaped
        self.nonces: set[str] = set()  # until they are forgotten
        self.wrote: Callable[[Worker, str], None] = lambda worker, words: None
        """Hears each line that a worker writes to stderr."""
        self._site = site
        self._gateway = gateway
        self._ids = ids
        self._ledger = Ledger(site.directory / "ledger")
        self._homes = site.directory / "homes"

    def twin(self) -> Spawner:
        """One whose processes are this one's, with capabilities of its own: for who tries things out beside."""
        return copy(self)

    def apply(self, *, max_retries: int, request_timeout_s: float, oauth_token: str | None) -> bool:
        """What processes are told from now on; whether those that live were told something else."""
        before = self._site
        self._site = replace(
            before, max_retries=max_retries, request_timeout_s=request_timeout_s, oauth_token=oauth_token
        )
        return self._site != before

    @property
    def environ(self) -> Mapping[str, str]:
        """The daemon's own environment; nobody's to hand on as it is."""
        return self._site.environ

    @property
    def brokered(self) -> bool:
        """Whether workers reach the model through the gateway, and not with a login of their own."""
        return self._site.access is Access.BROKER

    def end_old_workers(self) -> list[int]:
        """Before the first spawn: ends what an earlier daemon left, and empties its directories."""
        ended = self._ledger.end_old_workers()
        remove_tree(self._homes)
        return ended

    @property
    def pids(self) -> set[int]:
        """The children that are ours."""
        return {process.pid for process in self.processes if process is not None}

    def prepare(self, shape: Shape, *, canned: bool = False) -> Worker:
        """A worker in state ``starting``, without its process. ``canned``: for probes, see :class:`Gateway`."""
        return self.prepare_as(Worker, shape, canned=canned)

    def prepare_as(self, kind: type[W], shape: Shape, *, canned: bool = False) -> W:
        worker_id = self._ids("wrk")
        brokered = canned or self._site.access is Access.BROKER
        account = self._gateway.open(worker_id, canned=canned) if brokered else None
        return kind(worker_id, account, shape.model, self.capabilities, shape)

    async def spawn(
        self, worker: Worker, shape: Shape, exited: Callable[[], None], outfit: Outfit | None = None
    ) -> None:
        """Starts the worker's process. ``outfit``: an agent's tools and directories, and what it is shut into.

        Raises :class:`~claude_daemon.engine.process.SpawnFailed` or OSError.
        """
        launch = self._launch(worker, shape)
        self.prepared(launch)
        if outfit is not None:
            launch = replace(launch, agent=outfit.agent, add_dirs=outfit.add_dirs)
            if (kept := outfit.conversation) is not None:
                launch = replace(
                    launch,
                    config_dir=kept.config_dir,
                    session_persistence=True,
                    session_id=kept.session_id,
                    resume=kept.resume,
                    fork=kept.fork,
                )
        env = environment(launch, self._site.environ)
        if launch.settings_file is not None:
            launch.settings_file.write_bytes(held_settings(env))
        command = Command(argv=argv(launch), env=env, cwd=launch.home)
        if outfit is not None:
            command = outfit.enclose(command, launch)
        worker.nonce, worker.config_dir = launch.nonce, launch.config_dir
        self._ledger.announce(launch.nonce)
        self.nonces.add(launch.nonce)

        def ended() -> None:
            self.processes.discard(worker.process)
            exited()

        process = await Process.spawn(
            command.argv,
            command.env,
            command.cwd,
            worker.received,
            ended,
            command.pass_fds,
            wrote=lambda words: self.wrote(worker, words),
        )
        worker.process = process
        if not process.gone:
            self.processes.add(process)
        self._ledger.add(process.pid, launch.nonce)
        if shape.binding is not None:
            worker.binding = shape.binding

    # programs that are no workers, and are ended with all that they leave as workers are

    def new_nonce(self) -> str:
        nonce = secrets.token_hex(16)
        self._ledger.announce(nonce)
        self.nonces.add(nonce)
        return nonce

    async def start_beside(
        self, command: Command, nonce: str, received: Received, exited: Callable[[], None]
    ) -> Process:
        """Starts it, marked with the nonce. Raises :class:`~claude_daemon.engine.process.SpawnFailed`."""
        started: list[Process] = []

        def ended() -> None:
            self.processes.difference_update(started)
            exited()

        env = {**command.env, NONCE_VARIABLE: nonce}
        process = await Process.spawn(command.argv, env, command.cwd, received, ended)
        started.append(process)
        if not process.gone:
            self.processes.add(process)
        self._ledger.add(process.pid, nonce)
        return process

    def forget_beside(self, nonce: str) -> None:
        """It is gone, or was never started."""
        self._ledger.remove(nonce)
        self.nonces.discard(nonce)

    def _launch(self, worker: Worker, shape: Shape) -> Launch:
        home = self._homes / worker.id
        (home / "tmp").mkdir(parents=True, mode=0o700)
        # its own: what one trust domain's worker leaves there, no other's reads
        (home / "config").mkdir(mode=0o700)
        worker.home = home
        site, can, binding = self._site, self.capabilities, shape.binding
        # a probe never holds a credential: it talks to the gateway's canned answers whatever the access is
        access = Access.BROKER if worker.account is not None else site.access
        prompt_file = None
        if binding is not None and binding.system:
            prompt_file = home / "system-prompt"
            prompt_file.write_text(binding.system, encoding="utf-8")
        return Launch(
            cli=site.cli,
            model=shape.model,
            access=access,
            home=home,
            config_dir=home / "config",
            nonce=secrets.token_hex(16),
            max_retries=site.max_retries,
            request_timeout_s=site.request_timeout_s,
            bare=can.bare,
            restricted=can.restricted,
            permission_prompts=can.permission_prompts,
            hooks=can.hooks,
            todo_list=can.todo_list,
            base_url=worker.account.base_url if worker.account is not None else site.base_url,
            token=worker.account.token if worker.account is not None else site.oauth_token,
            system_prompt_file=prompt_file,
            schema=binding.schema.decode() if binding is not None and binding.schema is not None else None,
        )

    def forget(self, worker: Worker) -> None:
        """The process is gone: its entry, account and directory go too."""
        if worker.account is not None:
            worker.account.close()
        if worker.nonce is not None:
            self._ledger.remove(worker.nonce)
            self.nonces.discard(worker.nonce)
        if worker.home is not None:
            remove_tree(worker.home)
