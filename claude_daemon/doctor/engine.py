"""Claude Code, the credential, the sandbox."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

from claude_daemon.config import Loaded
from claude_daemon.config.credential import CREDENTIALS
from claude_daemon.doctor.finding import Finding
from claude_daemon.engine.lane import bundled_cli, login_present
from claude_daemon.engine.launch import QUIET
from claude_daemon.engine.process import SpawnFailed, run_briefly
from claude_daemon.engine.sandbox import find_bwrap, sandbox_missing

_VERSION_TIMEOUT_S: Final = 30.0


def cli_of(loaded: Loaded) -> Path:
    """As the daemon finds it."""
    return loaded.settings.engine.cli_path or bundled_cli() or Path(shutil.which("claude") or "claude")


async def claude_code(loaded: Loaded) -> AsyncIterator[Finding]:
    cli = cli_of(loaded)
    todo = "install claude-agent-sdk, which brings it, or name another one: engine.cli_path"
    with tempfile.TemporaryDirectory(prefix="claude-daemon-") as directory:
        env = {"HOME": directory, "PATH": "/usr/bin:/bin", **QUIET}
        try:
            status, said = await run_briefly([str(cli), "--version"], env, Path(directory), _VERSION_TIMEOUT_S)
        except SpawnFailed as error:
            yield Finding(name="Claude Code", status="fail", reason=str(error), todo=todo)
            return
    if status != 0 or not said.strip():
        reason = f"{cli} --version ended with status {status}: is this Claude Code?"
        yield Finding(name="Claude Code", status="fail", reason=reason, todo=todo)
    else:
        yield Finding(name=f"Claude Code {said.split()[0][:40]}", status="pass", reason=str(cli))


async def credential(loaded: Loaded, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Whether there is one; whether it is good, only the upstream knows."""
    upstream, name = loaded.settings.engine.upstream, "credential"
    todo = "set ANTHROPIC_API_KEY (or ANTHROPIC_API_KEY_FILE), or log in with claude"
    found = loaded.credential
    if upstream == "offline":
        yield Finding(name=name, status="pass", reason="none is needed: the offline model answers")
    elif found is not None and found.kind == "oauth_token":
        yield _a_login(name, f"{found.kind} from {found.origin}")
    elif found is not None:
        yield Finding(name=name, status="pass", reason=f"{found.kind} from {found.origin}")
        for file in filter(None, (environ.get(f"{variable}_FILE") for variable in CREDENTIALS)):
            if _open_to_others(file):
                yield Finding(name=file, status="warn", reason="others may read it", todo=f"chmod 600 {file}")
    elif await login_present(cli_of(loaded), environ, Path(tempfile.gettempdir())):
        yield _a_login(name, "a login that claude has in this user's home")
    elif upstream == "auto":
        yield Finding(name=name, status="warn", reason="none: the offline model will answer", todo=todo)
    else:
        reason = f"none, and with the profile {loaded.profile} the daemon is not ready without"
        yield Finding(name=name, status="fail", reason=reason, todo=todo)


def _a_login(name: str, which: str) -> Finding:
    reason = f"{which}: every key is in one trust domain, and agents and sessions are refused"
    return Finding(name=name, status="warn", reason=reason, todo="an API key, where that matters")


def _open_to_others(file: str) -> bool:
    try:
        return bool(os.stat(file).st_mode & 0o077)  # noqa: PTH116 - a name, and nothing else is done with it
    except OSError:
        return False


async def sandbox(loaded: Loaded) -> AsyncIterator[Finding]:
    wish, name = loaded.settings.engine.sandbox, "sandbox"
    if wish == "none":
        reason = 'engine.sandbox is "none": a key with tools is this Unix user'
        yield Finding(name=name, status="warn", reason=reason, todo='engine.sandbox = "auto", and bubblewrap')
        return
    missing = await sandbox_missing(find_bwrap())
    if missing is None:
        yield Finding(name=name, status="pass", reason="bubblewrap works")
        return
    todo = "install bubblewrap 0.11 or newer, and allow unprivileged user namespaces"
    if wish == "bwrap" or loaded.profile != "dev":
        told = f"{missing}; no tool but Read, Grep and Glob will run"
        yield Finding(name=name, status="fail" if wish == "bwrap" else "warn", reason=told, todo=todo)
    else:
        yield Finding(name=name, status="warn", reason=f"{missing}; a key with tools is this Unix user", todo=todo)
