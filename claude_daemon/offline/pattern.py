"""A short string that a regular expression matches. Pure; it never matches, so no pattern can stall it."""

import importlib
import re
import warnings
from typing import Any, Final

MAX_STEPS: Final = 20_000
"""Nodes visited for one pattern; `(a{999}){999}` ends here."""
_NEGATED_CANDIDATES: Final = "a0 -_Ab1!~"
_CATEGORIES: Final = {
    "DIGIT": "0",
    "NOT_DIGIT": "a",
    "WORD": "a",
    "NOT_WORD": "-",
    "SPACE": " ",
    "NOT_SPACE": "a",
}

# The standard library's own parser: private, but in place from 3.11 to 3.14, and only a nicety here.
_parser: Any = importlib.import_module("re._parser")


def example(pattern: str, shortest: int = 0) -> str:
    """A string that matches `pattern`, at least `shortest` long where the pattern allows it.

    Looks at nothing around an assertion, and answers `x` characters for a pattern that Python cannot read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = _parser.parse(pattern)
        text = _Writer().sequence(tree)
        for extra in range(1, min(shortest, 64) + 1):
            if len(text) >= shortest:
                break
            text = _Writer(extra).sequence(tree)
        if len(text) < shortest:
            text = _Writer(shortest).sequence(tree)
    except (re.error, OverflowError, RecursionError, _TooLong):
        return "x" * shortest
    return text if len(text) >= shortest or pattern.endswith("$") else text.ljust(shortest, "x")


class _TooLong(Exception):
    """The pattern asks for more than MAX_STEPS."""


class _Writer:
    """Writes one example; each repetition takes its fewest rounds and up to `extra` more."""

    def __init__(self, extra: int = 0) -> None:
        self._extra = extra
        self._steps = 0
        self._groups: dict[int, str] = {}

    def sequence(self, tree: Any) -> str:
        return "".join(self._node(str(op), argument) for op, argument in tree)

    def _node(self, op: str, argument: Any) -> str:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise _TooLong
        if op == "LITERAL":
            return chr(argument)
        if op == "NOT_LITERAL":
            return _other_than({chr(argument)})
        if op == "ANY":
            return "a"
        if op == "IN":
            return _member(argument)
        if op in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            fewest, most, body = argument
            rounds = int(min(fewest + self._extra, max(int(most), fewest)))
            return "".join(self.sequence(body) for _ in range(rounds))
        if op == "SUBPATTERN":
            text = self.sequence(argument[3])
            if argument[0] is not None:
                self._groups[argument[0]] = text
            return text
        if op == "BRANCH":
            return self.sequence(argument[1][0])
        if op == "ATOMIC_GROUP":
            return self.sequence(argument)
        if op == "GROUPREF":
            return self._groups.get(argument, "")
        return ""


def _member(items: Any) -> str:
    """One character of a class such as `[a-z_]` or `[^"]`."""
    op, argument = str(items[0][0]), items[0][1]
    if op == "NEGATE":
        return _other_than({char for char in _NEGATED_CANDIDATES if _in_class(char, items[1:])})
    if op == "LITERAL":
        return chr(argument)
    if op == "RANGE":
        return chr(argument[0])
    return _CATEGORIES.get(str(argument).removeprefix("CATEGORY_"), "a")


def _in_class(char: str, items: Any) -> bool:
    return any(_matches(char, str(op), argument) for op, argument in items)


def _matches(char: str, op: str, argument: Any) -> bool:
    if op == "LITERAL":
        return char == chr(argument)
    if op == "RANGE":
        return bool(argument[0] <= ord(char) <= argument[1])
    name = str(argument).removeprefix("CATEGORY_")
    kinds = {"DIGIT": char.isdigit(), "WORD": char.isalnum() or char == "_", "SPACE": char.isspace()}
    return not kinds[name[4:]] if name.startswith("NOT_") else kinds.get(name, False)


def _other_than(taken: set[str]) -> str:
    return next((char for char in _NEGATED_CANDIDATES if char not in taken), "\u2603")
