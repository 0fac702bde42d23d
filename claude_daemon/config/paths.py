"""The daemon's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from claude_daemon.config.layout import Layout
from claude_daemon.config.models import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where the daemon's files are; all absolute. ``log_file`` None: stderr only."""

    home: Path
    config_file: Path
    database: Path
    local_key: Path
    audit_key: Path
    control_socket: Path
    pid_file: Path
    log_file: Path | None
    engine_dir: Path
    work_dir: Path
    run_dir: Path

    @property
    def written(self) -> tuple[Path, ...]:
        """Every directory that the daemon writes to, some of them in others."""
        log = () if self.log_file is None else (self.log_file.parent,)
        return (self.home, self.database.parent, self.run_dir, self.engine_dir, self.work_dir, *log)

    @classmethod
    def of(cls, settings: Settings, layout: Layout, config_file: Path) -> Paths:
        return cls(
            home=layout.state,
            config_file=config_file,
            database=settings.store.path,
            local_key=layout.state / "local.key",
            audit_key=layout.state / "audit.key",
            control_socket=settings.control.socket,
            pid_file=layout.run / "daemon.pid",
            log_file=settings.log.file,
            engine_dir=layout.state / "engine",
            work_dir=layout.state / "work",
            run_dir=layout.run,
        )
