"""The pages that are made from the code say what the code says now."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from claude_daemon.config.models import Settings
from claude_daemon.layers.schema import variables
from tests.ctl.test_tree import TREE
from tests.docs import configuration_page, explained
from tests.docs.pages import DOCS, PAGES


@pytest.mark.parametrize(("path", "make"), PAGES.items(), ids=lambda value: getattr(value, "name", ""))
def test_a_page_is_current(path: Path, make: Callable[[], str]) -> None:
    assert path.read_text() == make(), "it is not: make docs"


def test_every_command_has_a_heading() -> None:
    headings = {
        line.lstrip("#").strip() for line in (DOCS / "claudectl.md").read_text().splitlines() if line[:1] == "#"
    }
    assert {" ".join(("claudectl", *path)) for path in TREE} <= headings


def test_every_variable_is_told() -> None:
    page = (DOCS / "configuration.md").read_text()
    assert [name for name in variables(Settings) if f"`{name}`" not in page] == []


def test_a_key_that_nobody_has_explained_is_found() -> None:
    section = explained.Section("http", keys={"host": "Where to listen."})
    with pytest.raises(LookupError, match=r"etc/config.toml does not have http\.port"):
        configuration_page._prose(section, "port")


EXAMPLE = """\
# What this is.

# All of it.
[a]
# The first two.
#x = 1
#y = "none"
# The third,
# on two lines.
#z = 2

#w = 3

# Tables of names.
# More of them.
#
# [b.one]
# k = 1
#
# [b.two]
# k = 2
"""


def test_comments_belong_to_the_keys_below_them() -> None:
    found = explained.sections(EXAMPLE)
    assert found["a"].prose == "All of it."
    told = {"x": "The first two.", "y": "The first two.", "z": "The third, on two lines.", "w": ""}
    assert found["a"].keys == told
    assert found["b"].prose == "Tables of names. More of them."
    assert tomllib.loads(found["b"].example) == {"b": {"one": {"k": 1}, "two": {"k": 2}}}
