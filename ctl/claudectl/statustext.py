"""What there is to say of the daemon as a whole, in plain words: for ``status`` and the head of ``top``. Pure.

Absent keys are skipped, unknown ones ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from claudectl import render
from claudectl.render import Document, duration, joined, known, mapping, plain, texts


class Check(NamedTuple):
    """One health check: ``status`` is pass, warn or fail."""

    name: str
    status: str
    reason: str


class Share(NamedTuple):
    """So much of what there could be; ``most`` 0: nobody knows."""

    part: int
    most: int


def title(document: Document) -> list[str]:
    """What stands beside the state."""
    parts = [f"claude-daemon {plain(document.get('version'))}"]
    if "uptime_seconds" in document:
        parts.append(f"up {duration(document['uptime_seconds'])}")
    parts += [f"pid {plain(document['pid'])}"] if "pid" in document else []
    parts += [plain(document[name]) for name in ("profile", "supervisor") if document.get(name) not in (None, "none")]
    return parts


def service(document: Document) -> Iterator[tuple[str, str]]:
    """What it is: where it listens, whom it asks, what it is made of."""
    for key, name in (("url", "url"), ("home", "home"), ("key_file", "key")):
        yield name, known(document.get(key))
    yield "config", render.config(mapping(document.get("config")))
    yield "log", _log(mapping(document.get("log")))
    yield "upstream", joined(" at ", document.get("upstream"), document.get("base_url"))
    if "credential" in document:
        credential = mapping(document["credential"])
        yield "credential", joined(" from ", credential.get("kind"), credential.get("origin")) or "none"
    cli = mapping(document.get("cli"))
    yield "cli", joined(" at ", cli.get("version"), cli.get("path"))
    yield "without", ", ".join(texts(cli.get("missing")))
    yield "lanes", ", ".join(texts(document.get("lanes")))


def _log(told: Document) -> str:
    """Where the lines go beside stderr, and how many went nowhere."""
    lost = f"{plain(told['lost'])} lines lost" if told.get("lost") else ""
    file = plain(told["file"] or "stderr alone") if "file" in told else ""
    return " · ".join(part for part in (file, lost) if part)


def load(document: Document) -> Iterator[tuple[str, str]]:
    """What it does."""
    yield "turns", _turns(mapping(document.get("turns")))
    yield "queue", queue(mapping(document.get("queue")))
    yield "workers", _workers(mapping(document.get("workers")))
    yield "agents", _agents(mapping(document.get("agents")))
    yield "sessions", _counts(_numbers(mapping(document.get("sessions"))))
    yield "starts", _counts(mapping(document.get("starts")))


def turns(document: Document) -> Share | None:
    """How many turns run of those that may, in all lanes that run the CLI."""
    told = mapping(document.get("turns"))
    return _share(told.get("running"), told.get("limit"))


def _share(part: object, most: object) -> Share | None:
    both = [number for number in (part, most) if isinstance(number, int) and not isinstance(number, bool)]
    return Share(*both) if len(both) == 2 and min(both) >= 0 else None


def checks(document: Document) -> list[Check]:
    """Every check, the worst first; among equals in the daemon's order."""
    found = [
        Check(plain(name), plain(told.get("status")), _reason(told))
        for name, check in mapping(document.get("checks")).items()
        if (told := mapping(check))
    ]
    order = {"fail": 0, "warn": 1, "pass": 2}
    return sorted(found, key=lambda check: order.get(check.status, 1))


def _reason(check: Document) -> str:
    """The configuration's is told among the facts already, while it passes."""
    return known(check.get("reason") or None) if check.get("status") == "pass" else render.reason(check)


def queue(told: Document) -> str:
    """``waiting`` are chats, ``queued`` durable tasks, ``running`` both."""
    names = {"running": "running", "waiting": "chats wait", "queued": "tasks queued"}
    parts = [f"{plain(told[key])} {name}" for key, name in names.items() if key in told]
    return " · ".join([*parts, *(["paused"] if told.get("paused") else [])])


def _turns(told: Document) -> str:
    return f"{plain(told.get('running'))} of {plain(told['limit'])} running" if "limit" in told else ""


def _numbers(counts: Document) -> Document:
    return {name: count for name, count in counts.items() if isinstance(count, int) and not isinstance(count, bool)}


def _workers(told: Document) -> str:
    """Of the text lane."""
    live = [f"{plain(told['live'])} live"] if "live" in told else []
    rest = {name: told[name] for name in ("busy", "idle", "starting", "spares") if name in told}
    if not rest.get("starting"):
        rest.pop("starting", None)
    return " · ".join([*live, *([_counts(rest)] if rest else [])])


def _agents(told: Document) -> str:
    """How many there are, and what holds them."""
    parts = [counted] if (counted := _counts(_numbers(told))) else []
    if "sandboxed" in told:
        parts.append("sandboxed" if told["sandboxed"] else "no sandbox")
    held = {"cgroup": "limits for all processes of one", "rlimit": "limits for each process", "none": "no limits"}
    if "limits" in told:
        parts.append(held.get(plain(told["limits"]), plain(told["limits"])))
    return " · ".join(parts)


def _counts(counts: Document) -> str:
    return " · ".join(f"{plain(count)} {plain(name)}" for name, count in counts.items())
