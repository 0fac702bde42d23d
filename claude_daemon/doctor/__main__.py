"""``python -m claude_daemon.doctor``: one finding a line, as JSON; 0 whatever is found."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claude_daemon.doctor.finding import Finding
from claude_daemon.doctor.installation import installation

if TYPE_CHECKING:
    from claude_daemon.config import Loaded

Look = Callable[[], Iterator[Finding] | AsyncIterator[Finding]]


async def main(asked: argparse.Namespace) -> None:
    await look("installation", installation)
    loaded: list[Loaded] = []
    await look("configuration", lambda: configuration(asked, loaded))
    if loaded:
        await around(loaded[0], running=asked.running, port_held=asked.port_held)


def configuration(asked: argparse.Namespace, loaded: list[Loaded]) -> Iterator[Finding]:
    """Puts it into ``loaded`` where it is good, or would be but for what only a start finds out."""
    from claude_daemon.config import ConfigError, load
    from claude_daemon.usable import faults

    flags = {"config": asked.config, "profile": asked.profile}
    try:
        found = load(flags, os.environ, home=asked.home)
    except ConfigError as error:
        for fault in error.faults:
            yield Finding(name="configuration", status="fail", reason=str(fault), todo="claude-daemon check-config")
        return
    loaded.append(found)
    wrong = faults(found.settings)
    for told in wrong:
        yield Finding(name="configuration", status="fail", reason=told)
    if not wrong:
        file = found.paths.config_file
        reason = f"profile {found.profile}, {file if found.file_digest is not None else f'no {file}: defaults'}"
        yield Finding(name="configuration", status="pass", reason=reason)


async def around(loaded: Loaded, *, running: bool, port_held: bool) -> None:
    """What a daemon that runs has already is its own to tell."""
    from claude_daemon.doctor import engine, files, network

    await look("home", lambda: files.home(loaded))
    await look("store", lambda: files.store(loaded))
    await look("log", lambda: files.log_file(loaded))
    await look("disk", lambda: files.disks(loaded))
    await look("roots", lambda: files.roots(loaded))
    await look("file descriptors", lambda: files.descriptors(loaded))
    await look("Claude Code", lambda: engine.claude_code(loaded))
    if not running:
        await look("sandbox", lambda: engine.sandbox(loaded))
        await look("credential", lambda: engine.credential(loaded, os.environ))
    if not running and not port_held:  # else whoever connects wakes a daemon
        await look("control socket", lambda: files.control_socket(loaded))
        await look("port", lambda: network.port(loaded))


async def look(name: str, at: Look) -> None:
    """Tells what is found; that it cannot be looked at is a finding, and keeps nobody from the next one."""
    try:
        found: Any = at()
        if isinstance(found, AsyncIterator):
            async for finding in found:
                tell(finding)
        else:
            for finding in found:
                tell(finding)
    except Exception as error:
        reason = f"it cannot be looked at: {type(error).__name__}: {error}"
        tell(Finding(name=name, status="fail", reason=reason))


def tell(finding: Finding) -> None:
    sys.stdout.write(finding.line() + "\n")
    sys.stdout.flush()


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m claude_daemon.doctor", description=__doc__)
    parser.add_argument("--home", type=Path)
    parser.add_argument("--config")
    parser.add_argument("--profile", choices=("dev", "staging", "prod"))
    parser.add_argument("--running", action="store_true", help="a daemon of this home answers")
    parser.add_argument("--port-held", action="store_true", help="systemd has the port and the control socket")
    return parser.parse_args(argv)


if __name__ == "__main__":
    asyncio.run(main(arguments(sys.argv[1:])))
