"""A store's file as a test finds it or leaves it behind."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.store.samples import PATIENCE_S

ROOT = Path(__file__).parents[2]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def dump(path: Path) -> Mapping[str, Sequence[tuple[Any, ...]]]:
    """Every row of every table."""
    with closing(sqlite3.connect(path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return {table: db.execute(f'SELECT * FROM "{table}"').fetchall() for table in tables}


def sql(path: Path, *statements: str) -> Any:
    """The last one's first row."""
    found = None
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            found = db.execute(statement).fetchone()
    return found


def run(*argv: object, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """A Python process of its own, to its end: ``-c`` or ``-m`` and what follows."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*before, sys.executable, *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, env=environ, cwd=ROOT, timeout=PATIENCE_S)


def killed(*argv: object) -> list[str]:
    """The lines that it has said before it killed itself."""
    ended = run(*argv)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return ended.stdout.splitlines()
