"""The Dockerfile, as far as can be told without building it: its settings, and that it names what is there."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
from pathlib import Path

from tests.support import BIN

ROOT = Path(__file__).parent.parent


def instructions() -> list[tuple[str, str]]:
    """Every instruction with its argument, lines joined and comments left out."""
    text = "\n".join(
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.strip().startswith("#")
    )
    rows = (line.split(maxsplit=1) for line in text.replace("\\\n", " ").splitlines() if line.strip())
    return [(name, " ".join(rest.split())) for name, rest in rows]


def test_its_base_is_pinned_and_its_user_is_not_root() -> None:
    bases = {rest.partition(" AS ")[0] for name, rest in instructions() if name == "FROM"}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.13-slim-trixie@sha256:[0-9a-f]{64}", bases.pop())
    assert ("USER", "10001:10001") in instructions()
    assert ("STOPSIGNAL", "SIGTERM") in instructions()


def test_what_it_copies_is_there_and_not_left_out_of_the_context() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [rest.split() for name, rest in instructions() if name == "COPY" and not rest.startswith("--from")]
    sources = [source for *those, _ in copied for source in those]
    assert sources and all((ROOT / source).exists() for source in sources)
    assert all(any(fnmatch.fnmatch(source, pattern) for pattern in kept) for source in sources)


def test_the_daemon_understands_its_environment(tmp_path: Path) -> None:
    (pairs,) = [re.findall(r"(\w+)=(\S+)", rest) for name, rest in instructions() if name == "ENV"]
    environ = dict(pairs)
    home = environ["CLAUDE_DAEMON_HOME"]
    assert ("VOLUME", home) in instructions() and environ["HOME"] == home
    environ |= {"PATH": f"{BIN}:{os.defpath}", "HOME": str(tmp_path), "CLAUDE_DAEMON_HOME": str(tmp_path)}
    environ |= {name: os.environ[name] for name in os.environ if name.startswith("COVERAGE_")}
    argv = ["claude-daemon", "check-config"]
    told = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=50)
    assert told.returncode == 0, told.stderr
    assert re.search(r'http\.host +"?0\.0\.0\.0', told.stdout), told.stdout
    health = next(rest for name, rest in instructions() if name == "HEALTHCHECK")
    assert health.endswith('CMD ["claudectl", "--timeout", "4", "health"]')
    argv = ["claudectl", "--timeout", "4", "health"]
    assert subprocess.run(argv, env=environ, capture_output=True, timeout=50).returncode == 4  # nothing runs there
