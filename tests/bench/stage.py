"""What a run measures on: an offline model, daemons and raw CLIs, all in one temporary directory, all ended with it."""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import click
import orjson

from claude_daemon.core.agent import AgentSpec
from claude_daemon.engine.launch import Access, Launch, argv, environment
from tests.bench.chats import MODEL
from tests.bench.child import Child, more_files
from tests.bench.client import Connection, Unexpected, post
from tests.bench.machine import descendants
from tests.bench.raw import RawCli, process_per_request

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_CALM_TIMEOUT_S = 60.0
_POLL_S = 0.01  # of the control API: nothing there tells a change
_UPSTREAM_KEY = "sk-offline-bench"


class Daemon:
    """A running daemon, and the ways to ask it."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, home: Path) -> None:
        self.process = process
        self.url = url
        self.home = home
        self.key = (home / ".claude-daemon" / "local.key").read_text().strip()
        self.http = Connection(url)
        self._control = Connection(self.socket)

    @property
    def socket(self) -> Path:
        return self.home / ".claude-daemon" / "run" / "ctl.sock"

    @property
    def pid(self) -> int:
        return self.process.pid

    def control(self, what: str, connection: Connection | None = None) -> dict[str, Any]:
        """``GET /control/v1/<what>``."""
        answer = (connection or self._control).get(f"/control/v1/{what}", {"Claude-Daemon-Control": "1"})
        if answer.status != 200:
            raise Unexpected(f"control API: {answer.body!r}")
        return dict(answer.json)

    def act(self, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """``POST /control/v1/<what>``."""
        answer = self._control.ask(post(f"/control/v1/{what}", body or {}, {"Claude-Daemon-Control": "1"}))
        if answer.status not in (200, 201):
            raise Unexpected(f"control API: {answer.body!r}")
        return dict(answer.json)

    def reload(self, toml: str) -> None:
        """With this configuration file instead of the one before."""
        (self.home / ".claude-daemon" / "config.toml").write_text(toml)
        self.act("reload")

    def submit(self, prompt: str) -> str:
        """The id of a task that is durable, and queued."""
        answer = self.http.ask(post("/v1/tasks", {"prompt": prompt}, {"Authorization": f"Bearer {self.key}"}))
        if answer.status != 202:
            raise Unexpected(f"no task: {answer.body!r}")
        return str(answer.json["id"])

    def last_seq(self, task: str) -> int:
        """Where a task is by now, as the store knows."""
        answer = self._control.get(f"/control/v1/tasks/{task}", {"Claude-Daemon-Control": "1"})
        return int(answer.json["last_seq"])

    def calm(self, *, spare: bool = False) -> None:
        """Waits until every worker is idle, and with ``spare`` one of them unbound."""
        deadline = time.monotonic() + _CALM_TIMEOUT_S
        workers: dict[str, int] = {}
        while time.monotonic() < deadline:
            workers = self.control("status")["workers"]
            idle = workers["starting"] == 0 and workers["idle"] == workers["live"] >= workers["limit"]
            if idle and (workers["spares"] or not spare):
                return
            time.sleep(_POLL_S)
        raise TimeoutError(f"the workers do not come to rest: {workers}")

    def settled(self) -> list[dict[str, Any]]:
        """Every ``task.settled`` line of its log."""
        lines = (self.home / "stderr.log").read_bytes().splitlines()
        told = [orjson.loads(line) for line in lines if line.startswith(b"{")]
        return [line for line in told if line["event"] == "task.settled"]


class Stage:
    """``with Stage() as stage``."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        more_files()  # whatever is started here has as many
        self.directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="cdb-")))
        self.model_process = self._start_model()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _start_model(self) -> subprocess.Popen[bytes]:
        process = self._stack.enter_context(
            _running([sys.executable, "-m", "claude_daemon.offline", "--api-key", _UPSTREAM_KEY], self.environment())
        )
        assert process.stdout is not None
        told = orjson.loads(process.stdout.readline())
        self.base_url, self.api_key = str(told["base_url"]), str(told["api_key"])
        return process

    def complaints(self) -> list[str]:
        """What the daemons of this run have logged as errors, the newest last."""
        logs = sorted(self.directory.glob("d-*/stderr.log"), key=lambda log: log.stat().st_mtime)
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
        return [line for line in lines if '"level":"error"' in line or not line.startswith("{")]

    def environment(self, home: Path | None = None) -> dict[str, str]:
        """The whole environment of whatever is started here: nothing of this machine's is in it."""
        return {
            "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home or self.directory),
            "TMPDIR": str(self.directory),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(REPOSITORY),
        }

    def scratch(self, kind: str) -> Path:
        """A new directory of its own."""
        path = self.directory / f"{kind}-{next(self._numbers)}"
        path.mkdir(mode=0o700)
        return path

    @contextmanager
    def fresh_daemon(self, settings: Mapping[str, object] | None = None, toml: str = "") -> Iterator[Daemon]:
        """A daemon with its defaults but for ``settings`` (``SECTION__KEY``) and what its configuration file says;
        ready, and its workers at rest."""
        home = self.scratch("d")
        if toml:
            (home / ".claude-daemon").mkdir(mode=0o700)
            (home / ".claude-daemon" / "config.toml").write_text(toml)
            (home / ".claude-daemon" / "config.toml").chmod(0o600)
        env = self.environment(home)
        del env["PYTHONPATH"]
        env |= {"ANTHROPIC_API_KEY": self.api_key, "ANTHROPIC_BASE_URL": self.base_url}
        env |= {"CLAUDE_DAEMON_HTTP__PORT": "0", "CLAUDE_DAEMON_LOG__FORMAT": "json"}
        env |= {f"CLAUDE_DAEMON_{name}": str(value) for name, value in (settings or {}).items()}
        with (home / "stderr.log").open("wb") as log, _running([BIN / "claude-daemon", "run"], env, log) as process:
            daemon = Daemon(process, _announced_url(process, home / "stderr.log"), home)
            daemon.calm()
            yield daemon

    def edge(self) -> Child:
        """Our edge without a store, see :mod:`~tests.bench.edge`."""
        return Child("edge", self.environment(), self.scratch("e"))

    @cached_property
    def daemon(self) -> Daemon:
        """The daemon that most rows share."""
        return self._stack.enter_context(self.fresh_daemon())

    @cached_property
    def raw(self) -> RawCli:
        """A warm, unbound process that rows without system prompt and schema share."""
        return self._stack.enter_context(self.raw_cli())

    @cached_property
    def ordinary_bin(self) -> Path:
        """Where ``python`` and ``claudectl`` are as in an ordinary installation.

        The environment we run in may be a developer's: there the interpreter itself starts with an editable install's
        finder and with hooks of test tools.
        """
        venv = self.scratch("v")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, env=self.environment())
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
        where = [REPOSITORY, REPOSITORY / "ctl", Path(click.__file__).parents[1]]
        (packages / "bench.pth").write_text("".join(f"{path}\n" for path in where))
        script = (BIN / "claudectl").read_text().partition("\n")[2]
        claudectl = venv / "bin" / "claudectl"
        claudectl.write_text(f"#!{venv / 'bin' / 'python'}\n{script}")
        claudectl.chmod(0o755)
        return claudectl.parent

    def raw_launch(self, agent: AgentSpec | None = None) -> tuple[list[str], dict[str, str], str]:
        """argv, environment and working directory of a raw CLI: the daemon's own launch profile, but no broker."""
        spec = importlib.util.find_spec("claude_agent_sdk")
        assert spec is not None and spec.origin is not None
        home = self.scratch("r")
        (home / "tmp").mkdir()
        launch = Launch(
            cli=Path(spec.origin).parent / "_bundled" / "claude",
            model=MODEL,
            access=Access.BROKER,
            home=home,
            config_dir=home / "config",
            nonce="bench",
            max_retries=2,
            request_timeout_s=60.0,
            base_url=self.base_url,
            token=self.api_key,
            agent=agent,
        )
        return argv(launch), environment(launch, {}), str(home)

    def raw_cli(self) -> RawCli:
        return RawCli(*self.raw_launch())

    def per_request(self, prompt: str) -> Callable[[], float]:
        """One ``claude -p`` for the prompt each time it is called."""
        launch = self.raw_launch()
        return lambda: process_per_request(*launch, prompt)


@contextmanager
def _running(
    command: list[Any], env: Mapping[str, str], stderr: Any = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a session of its own (a Ctrl-C is for us, and we end it in order): SIGTERM, and SIGKILL behind it."""
    process = subprocess.Popen(
        command,
        env=env,
        cwd=env["HOME"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for pid in descendants(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _announced_url(process: subprocess.Popen[bytes], log: Path) -> str:
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    said, deadline = b"", time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        said += process.stdout.read() or b""
        if b" serves at " in said and said.endswith(b"\n"):
            return said.split(b" serves at ")[1].split()[0].decode()
        time.sleep(_POLL_S)
    raise RuntimeError(f"the daemon did not start: {log.read_text()[-4000:]}")
