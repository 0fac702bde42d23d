"""launchd's agent: a daemon of one user, on macOS."""

from __future__ import annotations

import plistlib
from pathlib import Path
from typing import Any, Final

LABEL: Final = "com.claude-daemon"
MARK: Final = "<!-- Written by claudectl service install, which writes it again: changes are lost. -->"
"""The second line, after XML's own: an agent without it is never touched."""
THROTTLE_S: Final = 5
EXIT_TIMEOUT_S: Final = 90
"""More than drain.lame_duck_s + drain.deadline_s + drain.kill_grace_s."""
UMASK: Final = 0o077
MAX_FILES: Final = 8192


def launch_agent(daemon: Path, home: Path) -> bytes:
    """The property list for ``~/Library/LaunchAgents``; ``home`` is the daemon's."""
    said = str(home / "log" / "launchd.log")
    agent: dict[str, Any] = {
        "Label": LABEL,
        "ProgramArguments": [str(daemon), "run"],
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": THROTTLE_S,
        "ExitTimeOut": EXIT_TIMEOUT_S,
        "ProcessType": "Background",
        "AbandonProcessGroup": False,
        "Umask": UMASK,
        "SoftResourceLimits": {"NumberOfFiles": MAX_FILES},
        "EnvironmentVariables": {
            "CLAUDE_DAEMON_HOME": str(home),
            "CLAUDE_DAEMON_PROFILE": "prod",
            "CLAUDE_DAEMON_SUPERVISOR": "launchd",
        },
        "StandardOutPath": said,
        "StandardErrorPath": said,
    }
    declaration, rest = plistlib.dumps(agent).split(b"\n", 1)
    return b"\n".join([declaration, MARK.encode(), rest])
