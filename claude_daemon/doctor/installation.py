"""The interpreter and the packages. Of ours nothing is imported: they may be what is broken."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Final

from claude_daemon import __version__
from claude_daemon.doctor.finding import Finding

OLDEST: Final = (3, 11)
NEWEST_TRIED: Final = (3, 14)
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_BOUND: Final = re.compile(r"(>=|<=|==|!=|<|>)\s*([0-9.]+)")


def installation(version: tuple[int, int] = sys.version_info[:2]) -> Iterator[Finding]:
    yield python(version)
    yield from packages()


def python(version: tuple[int, int]) -> Finding:
    told = f"{sys.executable}"
    name = f"Python {'.'.join(map(str, version))}"
    if version < OLDEST:
        todo = f"install claude-daemon with Python {OLDEST[0]}.{OLDEST[1]} or newer"
        return Finding(name=name, status="fail", reason=told, todo=todo)
    if version > NEWEST_TRIED:
        reason = f"{told}; newer than any that this version was tried with"
        return Finding(name=name, status="warn", reason=reason)
    return Finding(name=name, status="pass", reason=told)


def packages() -> Iterator[Finding]:
    """Each requirement that is not there, or in another version than asked for; one finding where all are."""
    again = f"{sys.executable} -m pip install --upgrade claude-daemon=={__version__}"
    try:
        required = [text for text in metadata.requires("claude-daemon") or () if "extra ==" not in text]
    except metadata.PackageNotFoundError:
        reason = "the package's metadata are missing: it runs from a directory and was not installed"
        yield Finding(name=f"claude-daemon {__version__}", status="warn", reason=reason, todo=again)
        return
    wrong = [finding for text in required if (finding := requirement(text, again)) is not None]
    yield from wrong
    if not wrong:
        yield Finding(
            name=f"claude-daemon {__version__}", status="pass", reason=f"{len(required)} packages are as required"
        )


def requirement(text: str, again: str) -> Finding | None:
    """None where it is met. ``text`` as in the metadata: ``aiohttp<3.15,>=3.14``, a marker behind ``;``."""
    found = _NAME.match(text)
    assert found is not None
    name = found[0]
    try:
        there = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name=f"package {name}", status="fail", reason="it is not installed", todo=again)
    bounds = _BOUND.findall(text.partition(";")[0])
    if all(_within(_numbers(there), operator, _numbers(bound)) for operator, bound in bounds):
        return None
    wanted = ", ".join(f"{operator} {bound}" for operator, bound in bounds)
    return Finding(name=f"package {name}", status="fail", reason=f"{there} is there, {wanted} is needed", todo=again)


def _numbers(version: str) -> tuple[int, ...]:
    """
    >>> _numbers("3.14.0rc1"), _numbers("8")
    ((3, 14, 0), (8,))
    """
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _within(version: Sequence[int], operator: str, bound: Sequence[int]) -> bool:
    """
    >>> [_within((3, 14, 2), *asked) for asked in ((">=", (3, 14)), ("<", (3, 15)), ("==", (3, 14)), ("<=", (3, 14)))]
    [True, True, False, False]
    """
    width = max(len(version), len(bound))
    left, right = ((*numbers, *[0] * (width - len(numbers))) for numbers in (version, bound))
    outcomes = {
        ">=": left >= right,
        "<=": left <= right,
        "==": left == right,
        "!=": left != right,
        "<": left < right,
        ">": left > right,
    }
    return outcomes[operator]
