"""The architecture's rule on imports (DESIGN.md), read off the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "claude_daemon"

# part -> the parts of ours that it may import
MAY: dict[str, set[str]] = {
    "core": set(),
    "ports": {"core"},
    "service": {"core", "ports"},
    "wire": {"core"},
    "engine": {"core", "ports"},
    "upstream": {"core", "ports"},
    "offline": set(),
    "store": {"core", "ports"},
    "supervise": {"ports"},
    "telemetry": {"config", "layers", "secret"},
    "api": {"core", "ports", "service", "wire"},
    # a program of its own, which looks at what the daemon would look at
    "doctor": {"core", "ports", "service", "engine", "store", "supervise", "config", "home", "usable"},
}
AIOHTTP = {"api", "upstream", "offline", "daemon"}


def imports_of(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            if node.module == "claude_daemon":
                yield from (f"claude_daemon.{alias.name}" for alias in node.names)
            else:
                yield node.module


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_one_way(file: Path) -> None:
    part = part_of(file)
    for module in imports_of(file):
        root, _, rest = module.partition(".")
        if root == "aiohttp":
            assert part in AIOHTTP, f"{part} may not import aiohttp"
        if root == "claude_daemon" and part in MAY:
            imported = rest.partition(".")[0]
            allowed = MAY[part] | {part, "__version__"}
            assert imported in allowed, f"{part} may not import {module}"


def test_claudectl_imports_little() -> None:
    for file in (ROOT / "ctl" / "claudectl").rglob("*.py"):
        for module in imports_of(file):
            root = module.partition(".")[0]
            assert root not in {"aiohttp", "pydantic", "asyncio", "httpx"}, f"{file.name} imports {module}"
            if root == "claude_daemon":
                allowed = ("claude_daemon.core", "claude_daemon.supervise.units", "claude_daemon.__version__")
                assert module.startswith(allowed), f"{file.name}: {module}"


def test_only_these_files_start_processes() -> None:
    """The CLI is spawned in engine/process.py; engine/schema.py starts its killable checker, ledger.py asks ps; another
    daemon is started in the background (detach.py) or as this one's successor."""
    spawners = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        if any(
            word in file.read_text()
            for word in ("subprocess_exec", "subprocess.run", "Popen", "os.fork", "os.posix_spawn")
        )
    }
    engine = {"engine/process.py", "engine/schema.py", "engine/ledger.py"}
    assert spawners <= engine | {"supervise/detach.py", "supervise/successor.py"}
