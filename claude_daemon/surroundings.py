"""Where a daemon's process comes from, and whom it tells how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from claude_daemon.config import Loaded
from claude_daemon.supervise.inherited import Inherited
from claude_daemon.supervise.notify import Notifier
from claude_daemon.supervise.stages import Teller
from claude_daemon.telemetry.logging import LogHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """``reload`` loads the configuration again, as it was loaded at the start; it raises ConfigError.

    ``argv`` starts a successor. ``supervisor``: systemd, launchd, detached or none. ``takeover``: another daemon has
    our home still, and is about to go.
    """

    environ: Mapping[str, str]
    reload: Callable[[], Loaded]
    argv: Sequence[str]
    log: LogHandle
    inherited: Inherited
    notifier: Notifier
    teller: Teller
    supervisor: str = "none"
    takeover: bool = False
