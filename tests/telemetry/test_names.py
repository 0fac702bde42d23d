"""Event names: what the code emits and what docs/logs.md lists are the same."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from claude_daemon.telemetry import pipeline

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "logs.md"

_NAME = re.compile(r"[a-z_]+(\.[a-z_]+)+|model_call")
_LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
_TELLERS = {"say", "told", "_told", "_tell", "_apart", "PoolEvent", "run"}
"""Through which a part tells what the journal writes down; ``run`` tells within another context."""
_BY_ITSELF = {pipeline.LIBRARY, pipeline.UNCAUGHT, pipeline.SAMPLED}


def _called(call: ast.Call) -> str:
    func = call.func.body if isinstance(call.func, ast.IfExp) else call.func
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def _tells(call: ast.Call) -> bool:
    name = _called(call)
    if name == "run":
        return any(isinstance(arg, ast.Attribute) and arg.attr in _LEVELS | _TELLERS for arg in call.args)
    return name in _LEVELS | _TELLERS


def _strings(call: ast.Call) -> Iterator[str]:
    for arg in (*call.args, *(keyword.value for keyword in call.keywords)):
        if isinstance(arg, ast.Constant) and isinstance(arg.value, str) and _NAME.fullmatch(arg.value):
            yield arg.value


def emitted() -> dict[str, str]:
    """Every name, and a file that emits it."""
    found = dict.fromkeys(_BY_ITSELF, "telemetry/pipeline.py")
    for file in sorted((ROOT / "claude_daemon").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and _tells(node):
                found.update(dict.fromkeys(_strings(node), str(file.relative_to(ROOT))))
    return found


def listed() -> list[str]:
    """The first column of the page's tables of events."""
    events = PAGE.read_text().split("## Events")[1].split("\n## ")[0]
    return re.findall(r"^\| `([a-z_.]+)` \|", events, re.MULTILINE)


def test_every_event_that_is_emitted_is_on_the_page_and_no_other() -> None:
    names, page = emitted(), listed()
    assert len(page) == len(set(page)), "listed twice"
    missing = {name: file for name, file in names.items() if name not in page}
    assert not missing, "emitted, and not on the page"
    assert not set(page) - names.keys(), "on the page, and not emitted"


def test_the_search_finds_names_in_every_way_in_which_they_are_told() -> None:
    names = emitted()
    told = ("daemon.ready", "worker.ready", "model_call", "audit.head", "webhook.failed", "redis.lost", "mcp.stderr")
    assert names.keys() >= {*told, "agents.no_cgroups", "task.settled", "daemon.stacks.threads"}
