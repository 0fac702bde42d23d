"""A shell's line, taken apart for the rules of a task."""

from __future__ import annotations

import pytest

from claude_daemon.core.agent import AgentSpec
from claude_daemon.core.command import commands, matches


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("git status", ["git status"]),
        ("echo hi; git status && ls\npwd", ["echo hi", "git status", "ls", "pwd"]),
        ("python3 -B t.py 2>&1 | tail -3", ["python3 -B t.py"]),
        ("python3 -B t.py |& grep x | wc -l", ["python3 -B t.py"]),
        ("tail -3 | git status", ["tail -3", "git status"]),
        ("make &> log & ls", ["make log", "ls"]),
        ("for f in *; do python3 $f; done", ["python3 $f"]),
        ("if ! A=1 B=2 git diff; then exit 1; fi", ["git diff", "exit 1"]),
        ("cd x && git commit -m 'a; b'", ["git commit -m a; b"]),
        ("echo $(git status)", ["echo $", "git status"]),
        ("(git status)", ["git status"]),
        ("python3 -c'print(1);2'", ["python3 -cprint(1);2"]),
        ("cat <<E\ndon't\nE", ["cat <<E\ndon't\nE"]),
        ("", []),
    ],
)
def test_a_line_is_the_commands_that_it_is_made_of(line: str, found: list[str]) -> None:
    assert list(commands(line)) == found


@pytest.mark.parametrize(
    ("command", "pattern", "so"),
    [
        ("git status", "git *", True),
        ("git", "git *", True),
        ("gitk", "git *", False),
        ("npm run test:unit", "npm run test:*", True),
        ("npm run build", "npm run test:*", False),
        ("git commit -m a\nb", "git commit *", True),
        ("ls", "ls", True),
        ("ls -l", "ls", False),
        ("x[1]", "x[1]", True),
    ],
)
def test_a_pattern_is_about_the_commands_that_it_matches(command: str, pattern: str, so: bool) -> None:
    assert matches(command, pattern) is so


def test_every_command_of_a_line_needs_a_rule_and_other_tools_are_left_to_claude_code() -> None:
    spec = AgentSpec(allow=("Read", "Bash(echo *)", "Bash(ls)"))
    assert spec.ruled("Bash", {"command": "echo hi && ls"})
    assert not spec.ruled("Bash", {"command": "echo hi && git status"})
    assert not spec.ruled("Bash", {"command": "git status"})
    assert spec.ruled("Read", {"file_path": "/x"})
    assert AgentSpec(allow=("Bash",)).ruled("Bash", {"command": "git status"})
