"""The pages of ``docs/``: their links lead somewhere, what they name exists, and what they say to run runs."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
from pydantic import BaseModel

from claude_daemon.cli import cli as claude_daemon
from claude_daemon.config import Settings
from claude_daemon.core.errors import Code
from claudectl.main import cli as claudectl
from tests.support import BIN, DaemonProcess, share_probe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
FILES = {"audit.key", "local.key"}
OTHER_NAMES = {"logs.md", "health.md"}
"""Lines of the log and details of checks are named like settings; tests of their own hold those pages to the code."""
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_RUN_TIMEOUT_S = 200.0


def fences(page: str, language: str) -> list[str]:
    """The blocks of a page that are in this language; those in ``console`` are for machines that no test has."""
    return [text for kind, text in _FENCE.findall((DOCS / page).read_text()) if kind == language]


def anchors(page: Path) -> set[str]:
    """Of each heading, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_what_is_there(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"https?:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_has_every_page() -> None:
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= set(links(DOCS / "index.md"))


def settings() -> dict[str, Any]:
    """Section → its keys, None where they are the operator's own names."""
    found: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        shape: Any = field.annotation
        is_model = isinstance(shape, type) and issubclass(shape, BaseModel)
        found[name] = set(shape.model_fields) if is_model else None
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OTHER_NAMES], ids=lambda page: page.name)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    known = settings()
    others = FILES | set(re.findall(r"`([a-z]+\.[a-z_]+)`", (DOCS / "logs.md").read_text()))
    for section, key in re.findall(r"`([a-z]+)\.([a-z_]+)`", page.read_text()):
        if section in known and f"{section}.{key}" not in others:
            assert known[section] is None or key in known[section], f"{section}.{key}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_named_exists(page: Path) -> None:
    for program, words in re.findall(r"\b(claudectl|claude-daemon)((?: [a-z][a-z-]*)+)", page.read_text()):
        command: click.Command = claudectl if program == "claudectl" else claude_daemon
        for word in words.split():
            if not isinstance(command, click.Group):
                break
            found = command.get_command(click.Context(command), word)
            if found is None:
                assert command.name not in ("keys", "tasks", "workers", "sessions", "queue", "service"), words
                break
            command = found


def test_every_code_of_an_error_exists() -> None:
    text = (DOCS / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| \d{3} `(\w+)`", text, re.MULTILINE)
    failed = re.search(r"^## A task failed$(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    assert rows and failed
    rows += [
        name for row in re.findall(r"^\| (`.*?) \|", failed[1], re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert set(rows) <= {code.value for code in Code}


def run(language: str, blocks: list[str], where: Path, environ: Mapping[str, str], address: str) -> str:
    """All blocks as one script, in a directory of its own; its output."""
    marked = (
        [f"echo '-- block {number}' >&2\n{text}" for number, text in enumerate(blocks)] if language == "sh" else blocks
    )
    text = "\n".join(marked).replace("127.0.0.1:8006", address)
    argv = ["sh", "-eu", "-c", text] if language == "sh" else [sys.executable, "-c", text]
    kept = {name: os.environ[name] for name in os.environ if name.startswith("COVERAGE_") or name == "TMPDIR"}
    env = {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **kept, **environ}
    done = subprocess.run(argv, cwd=where, env=env, capture_output=True, text=True, timeout=_RUN_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(240)
def test_first_steps_then_operating_then_an_upgrade_and_back(daemon: DaemonProcess, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    home, where = tmp_path / "home", tmp_path / "where"
    home.mkdir()
    where.mkdir()
    share_probe(daemon, home)
    environ = {"HOME": str(home), "CLAUDE_DAEMON_HTTP__PORT": str(port)}
    environ |= {"CLAUDE_DAEMON_ENGINE__WORKERS": "1", "CLAUDE_DAEMON_ENGINE__SPARES": "0"}
    said = {}
    try:
        for page in ("first-steps.md", "operating.md", "upgrade.md"):
            said[page] = run("sh", fences(page, "sh"), where, environ, f"127.0.0.1:{port}")
    finally:
        subprocess.run([BIN / "claude-daemon", "stop"], env={**environ, "PATH": os.defpath}, timeout=50)
    assert "Hello from the offline model" in said["first-steps.md"]
    assert "the chain holds" in said["operating.md"]
    assert "daemon.db.replaced-1" in said["upgrade.md"]
    assert (where / "alice.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("page", "language"), [("api.md", "sh"), ("api.md", "python"), ("websocket.md", "python")])
async def test_its_examples_run(daemon: DaemonProcess, tmp_path: Path, page: str, language: str) -> None:
    blocks = fences(page, language)
    address = daemon.url.removeprefix("http://")
    environ = {"HOME": str(daemon.home)}
    said = await asyncio.to_thread(run, language, blocks, tmp_path, environ, address)  # the model answers in this loop
    assert "offline model" in said


def test_troubleshooting_and_capacity_say_nothing_to_run_that_does_not(daemon: DaemonProcess, tmp_path: Path) -> None:
    blocks = fences("troubleshooting.md", "sh")
    assert "right" in run("sh", blocks, tmp_path, {"HOME": str(tmp_path)}, "127.0.0.1:8006")
    others = {page.name for page in DOCS.glob("*.md") if fences(page.name, "sh")}
    tried = {"first-steps.md", "operating.md", "upgrade.md", "api.md", "troubleshooting.md"}
    assert {"capacity.md", "security.md", "websocket.md", "index.md"}.isdisjoint(others - tried)
