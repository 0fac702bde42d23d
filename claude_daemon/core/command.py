"""A shell's line as rules see it: the commands that it is made of; pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Final

_JOINTS: Final = ";&|\n()"
# A redirection to a descriptor, or of both outputs: its & joins nothing.
_DUPLICATED: Final = re.compile(r"\d*[<>]&(?:\d+|-)|&>>?")
# What may stand before a command without being it.
_BEFORE: Final = re.compile(r"^(?:(?:!|\{|do|then|else|elif|if|while|until|time|[A-Za-z_]\w*=\S*)\s+)*")
# What belongs to the shell's grammar, or only says where the next command works.
_NO_COMMAND: Final = re.compile(r"(?:cd|for|case|done|fi|esac|\}|#.*)(?:\s.*)?", re.DOTALL)
# What only passes on, in parts, what an allowed command says; nothing that is named by a file runs with them.
_FILTERS: Final = frozenset({"cat", "cut", "grep", "head", "sort", "tail", "tr", "uniq", "wc"})


def commands(line: str) -> Iterator[str]:
    """The commands of a line, but for filters behind a pipe. One that cannot be taken apart is told whole."""
    lexer = shlex.shlex(_DUPLICATED.sub(" ", line), posix=True, punctuation_chars=_JOINTS)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    words: list[str] = []
    piped = False
    try:
        for token in [*lexer, ";"]:
            if token and set(token) <= set(_JOINTS):
                if not (piped and words and words[0] in _FILTERS):
                    yield from _command(words)
                words, piped = [], token.rstrip("\n") in ("|", "|&")
            else:
                words.append(token)
    except ValueError:  # a quotation without an end, as in a here-document
        yield line.strip()


def _command(words: Sequence[str]) -> Iterator[str]:
    said = _BEFORE.sub("", " ".join(words), count=1)
    if said and not _NO_COMMAND.fullmatch(said):
        yield said


def matches(command: str, pattern: str) -> bool:
    """Whether a rule's pattern, such as ``git *``, may be about a command. In doubt it is."""
    if pattern.endswith(":*"):
        return command.startswith(pattern[:-2])
    regex = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(regex, command, re.DOTALL) is not None or command == pattern.removesuffix(" *")
