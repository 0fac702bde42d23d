"""The configuration that is in force: which it is, how old, and whether the file or a restart has more to say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from claude_daemon.config import Loaded
from claude_daemon.config.changes import Change, changes, needs_restart
from claude_daemon.config.digests import FileWatch
from claude_daemon.core.lifecycle import Check
from claude_daemon.layers import digest
from claude_daemon.ports import Clock, HealthReport

HASH_CHARS: Final = 12
"""Enough to tell two configurations apart at a glance."""


class Configuration:
    """``started`` is what the daemon was started with, ``loaded`` what it was told last."""

    def __init__(self, started: Loaded, monotonic: Clock) -> None:
        self.started = started
        self._monotonic = monotonic
        self._take(started)

    def _take(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self._loaded_at = self._monotonic()
        self._hash = digest(loaded)[:HASH_CHARS]
        self._file = FileWatch(loaded.paths.config_file, loaded.file_digest)
        self._needs_restart = needs_restart(self.started, loaded)

    def change(self, new: Loaded) -> list[Change]:
        """Makes ``new`` the one in force; what differs."""
        found = changes(self.loaded, new)
        self._take(new)
        return found

    @property
    def needs_restart(self) -> list[str]:
        """Keys whose new values wait for a restart."""
        return self._needs_restart

    def document(self) -> dict[str, Any]:
        """As ``status`` and ``reload`` tell it. ``file`` None: there was none to read, and is none now."""
        path = self.loaded.paths.config_file
        return {
            "file": str(path) if self.loaded.file_digest is not None or path.exists() else None,
            "hash": self._hash,
            "age_seconds": round(self._monotonic() - self._loaded_at, 3),
            "changed_on_disk": self._file.differs(),
            "needs_restart": self._needs_restart,
        }

    def check(self) -> Mapping[str, HealthReport]:
        """Warns while the file differs from what was loaded."""
        told = self.document()
        if told["changed_on_disk"]:
            reason = f"{told['file']} has changed since it was loaded: claudectl reload"
            return {"config": HealthReport(status=Check.WARN, reason=reason, details=told)}
        return {"config": HealthReport(status=Check.PASS, details=told)}
