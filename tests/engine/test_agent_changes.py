"""What an agent changed, as a diff of the files that its tools named."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.engine.agent_changes import MAX_DIFF_BYTES, MAX_FILE_BYTES, MAX_FILES, Changes
from claude_daemon.engine.sandbox import Place, open_beneath


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def place(work: Path) -> Iterator[Place]:
    opened = open_beneath(work.parent, "work")
    yield opened
    os.close(opened.fd)


async def test_a_file_that_was_edited_is_told_line_by_line(work: Path, place: Place) -> None:
    file = work / "a.py"
    file.write_text("one\ntwo\nthree\n")
    changes = Changes([place])
    await changes.before("Edit", {"file_path": str(file)})
    file.write_text("one\n2\nthree\n")
    await changes.before("Edit", {"file_path": str(file)})  # what counts is how it was at first
    file.write_text("one\nzwei\nthree\n")
    assert await changes.diff() == "--- a/a.py\n+++ b/a.py\n@@ -1,3 +1,3 @@\n one\n-two\n+zwei\n three\n"


async def test_a_new_file_has_nothing_before_it(work: Path, place: Place) -> None:
    changes = Changes([place])
    await changes.before("Write", {"file_path": str(work / "new.txt"), "content": "x"})
    (work / "new.txt").write_text("x")
    told = await changes.diff()
    assert told == "--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1 @@\n+x\n\\ No newline at end of file\n"


async def test_what_was_read_or_ran_or_came_back_as_it_was_is_no_change(work: Path, place: Place) -> None:
    file = work / "a.py"
    file.write_text("one\n")
    changes = Changes([place])
    await changes.before("Read", {"file_path": str(file)})
    await changes.before("Bash", {"command": "true"})
    assert await changes.diff() is None
    await changes.before("Write", {"file_path": str(file)})
    assert await changes.diff() is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("one\n\f\ntwo\u2028three\x85\x1cfour\n", "one\n\f\n2\u2028three\x85\x1cfour\n"),
        ("one\r\ntwo\r\n", "one\r\n2\r\n"),
        ("one\rtwo\rthree", "one\r2\rthree\n"),
    ],
)
async def test_a_diff_can_be_applied_whatever_ends_a_line(work: Path, place: Place, before: str, after: str) -> None:
    file = work / "a.txt"
    file.write_bytes(before.encode())
    changes = Changes([place])
    await changes.before("Edit", {"file_path": str(file)})
    file.write_bytes(after.encode())
    told = await changes.diff()
    assert told is not None
    file.write_bytes(before.encode())
    applied = subprocess.run(["git", "apply", "-"], cwd=work, input=told.encode(), capture_output=True, check=False)
    assert (applied.returncode, file.read_bytes()) == (0, after.encode()), applied.stderr


@pytest.mark.parametrize("how", ["outside", "symlink", "dots", "pipe", "nonsense"])
async def test_nothing_else_comes_into_a_diff(work: Path, place: Place, how: str) -> None:
    secret = work.parent / "secret"
    secret.write_text("the secret\n")
    path = work / "x"
    given: object = str(path)
    if how == "outside":
        given = str(secret)
    elif how == "symlink":
        path.symlink_to("../secret")
    elif how == "dots":
        given = f"{work}/../secret"
    elif how == "pipe":
        os.mkfifo(path)
    else:
        given = {"file": "x"}
    changes = Changes([place])
    await changes.before("Write", {"file_path": given})
    secret.write_text("changed\n")
    assert await changes.diff() is None


async def test_a_diff_is_bounded(work: Path, place: Place) -> None:
    changes = Changes([place])
    for number in range(MAX_FILES + 5):
        file = work / f"f{number:03}"
        await changes.before("Write", {"file_path": str(file)})
        file.write_text(f"{'x' * 2000}\n")
    told = await changes.diff()
    assert told is not None
    assert "cut here" in told
    assert len(told.encode()) < MAX_DIFF_BYTES + 100
    assert told.count("+++") < MAX_FILES


async def test_a_directory_in_a_files_place_is_no_file_and_keeps_no_descriptor(work: Path, place: Place) -> None:
    (work / "inner").mkdir()
    changes = Changes([place])
    before = set(Path("/dev/fd").iterdir())
    for path in (work, work / "inner"):
        await changes.before("Write", {"file_path": str(path)})
    assert await changes.diff() is None
    assert set(Path("/dev/fd").iterdir()) == before


@pytest.mark.parametrize("how", ["few-lines-many-times", "every-other-line", "nothing-in-common"])
async def test_a_comparison_takes_no_longer_than_its_files(work: Path, place: Place, how: str) -> None:
    """By itself it takes hours, in a thread that nobody can end."""
    lines = MAX_FILE_BYTES // 8
    before = after = [f"{number:06}\n" for number in range(lines)]
    if how == "few-lines-many-times":
        before, after = ([f"{(n * step) % 101}\n" for n in range(2 * lines)] for step in (7, 11))
    elif how == "every-other-line":
        after = [line if number % 2 else f"{number}!\n" for number, line in enumerate(before)]
    else:
        after = [f"{number}?\n" for number in range(lines)]
    changes = Changes([place])
    files = [work / f"{number}.txt" for number in range(4)]
    for file in files:
        file.write_text("".join(before))
        await changes.before("Edit", {"file_path": str(file)})
        file.write_text("".join(after))
    async with asyncio.timeout(20):
        assert await changes.diff() is not None


async def test_a_line_changed_in_a_long_file_is_told_as_that_line(work: Path, place: Place) -> None:
    file = work / "long.py"
    lines = [f"line {number}\n" for number in range(MAX_FILE_BYTES // 16)]
    file.write_text("".join(lines))
    changes = Changes([place])
    await changes.before("Edit", {"file_path": str(file)})
    lines[30_000] = "changed\n"
    file.write_text("".join(lines))
    told = await changes.diff()
    assert told is not None
    around = [*lines[29_997:30_000], None, *lines[30_001:30_004]]
    hunk = "".join("-line 30000\n+changed\n" if line is None else f" {line}" for line in around)
    assert told == f"--- a/long.py\n+++ b/long.py\n@@ -29998,7 +29998,7 @@\n{hunk}"


async def test_files_that_differ_throughout_are_told_as_all_the_old_and_all_the_new(work: Path, place: Place) -> None:
    file = work / "a.txt"
    file.write_text("".join(f"{number}\n" for number in range(5000)))
    changes = Changes([place])
    await changes.before("Edit", {"file_path": str(file)})
    file.write_text("".join(f"{number}!\n" for number in range(5000)))
    told = await changes.diff()
    assert told is not None
    assert told.startswith("--- a/a.txt\n+++ b/a.txt\n@@ -1,5000 +1,5000 @@\n-0\n-1\n")
    assert told.endswith("+4999!\n")


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_file_that_cannot_be_compared_is_named_and_not_told_as_gone(
    work: Path, place: Place, when: str
) -> None:
    small, large = "small\n", "x" * (MAX_FILE_BYTES + 1)
    file = work / "big.txt"
    file.write_text(large if when == "before" else small)
    changes = Changes([place])
    await changes.before("Edit", {"file_path": str(file)})
    file.write_text(small if when == "before" else large)
    assert await changes.diff() == "[big.txt is too large to be compared]\n"


# what a call would change


@pytest.mark.parametrize(
    ("tool", "given", "told"),
    [
        ("Write", {"content": "one\n2\n"}, " one\n-two\n+2\n"),
        ("Edit", {"old_string": "two", "new_string": "2"}, " one\n-two\n+2\n"),
        ("Edit", {"old_string": "o", "new_string": "0", "replace_all": True}, "-one\n-two\n+0ne\n+tw0\n"),
        ("Edit", {"old_string": "o", "new_string": "0"}, None),  # which one?
        ("Edit", {"old_string": "three", "new_string": "3"}, None),
        ("Edit", {"old_string": "", "new_string": "x"}, None),  # there is something
        ("Edit", {"old_string": "two"}, None),
        ("Write", {"content": "one\ntwo\n"}, None),
        ("Write", {}, None),
        ("Read", {}, None),
    ],
)
async def test_what_a_call_would_change_is_told_before_it_does(
    work: Path, place: Place, tool: str, given: dict[str, Any], told: str | None
) -> None:
    file = work / "a.py"
    file.write_text("one\ntwo\n")
    head = "--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,2 @@\n"
    diff = await Changes([place]).proposed(tool, {"file_path": str(file), **given})
    assert diff == (head + told if told is not None else None)
    assert file.read_text() == "one\ntwo\n"


@pytest.mark.parametrize("given", [{"content": "x\n"}, {"old_string": "", "new_string": "x\n"}])
async def test_a_file_that_a_call_would_make_has_nothing_before_it(
    work: Path, place: Place, given: dict[str, Any]
) -> None:
    tool = "Write" if "content" in given else "Edit"
    diff = await Changes([place]).proposed(tool, {"file_path": str(work / "new"), **given})
    assert diff == "--- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+x\n"


async def test_an_edit_is_of_the_lines_whatever_ends_them(work: Path, place: Place) -> None:
    (work / "a").write_bytes(b"one\r\ntwo\r\n")
    given = {"file_path": str(work / "a"), "old_string": "one\ntwo", "new_string": "1\n2"}
    assert await Changes([place]).proposed("Edit", given) is not None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"cell_id": "b", "new_source": "y = 2"}, ["-x = 1", "+y = 2"]),
        ({"cell_id": "cell-1", "new_source": "y = 2"}, ["-x = 1", "+y = 2"]),
        ({"cell_id": "b", "new_source": "", "edit_mode": "delete"}, ["-x = 1"]),
        ({"cell_id": "b", "new_source": "z = 3", "edit_mode": "insert"}, ["+z = 3"]),
        ({"cell_id": "who", "new_source": "y = 2"}, []),
    ],
)
async def test_of_a_notebook_the_cell_is_compared(
    work: Path, place: Place, given: dict[str, Any], told: list[str]
) -> None:
    cells = [{"id": "a", "source": ["x = 0\n", "x"]}, {"id": "b", "source": "x = 1"}]
    (work / "n.ipynb").write_text(json.dumps({"cells": cells}))
    diff = await Changes([place]).proposed("NotebookEdit", {"notebook_path": str(work / "n.ipynb"), **given})
    lines = [line for line in (diff or "").splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert lines == told


@pytest.mark.parametrize("content", ["[]", "{", '{"cells": 1}', '{"cells": [1]}', '{"cells": [{"id": "b"}]}'])
async def test_what_is_no_notebook_is_not_compared(work: Path, place: Place, content: str) -> None:
    (work / "n.ipynb").write_text(content)
    given = {"notebook_path": str(work / "n.ipynb"), "cell_id": "b", "new_source": "y"}
    assert await Changes([place]).proposed("NotebookEdit", given) is None


async def test_what_a_call_would_do_elsewhere_is_not_told(work: Path, place: Place) -> None:
    (work.parent / "secret").write_text("secret\n")
    (work / "link").symlink_to(work.parent / "secret")
    changes = Changes([place])
    for path in (work.parent / "secret", work / ".." / "secret", work / "link"):
        given = {"file_path": str(path), "old_string": "secret", "new_string": "x"}
        assert await changes.proposed("Edit", given) is None
    assert not changes.reaches("Write", {"file_path": str(work / ".." / "secret")})
    assert not changes.reaches("Write", {"file_path": 7})


async def test_a_large_proposal_is_cut(work: Path, place: Place) -> None:
    given = {"file_path": str(work / "a"), "content": "x" * 79 + "\n" * MAX_DIFF_BYTES}
    diff = await Changes([place]).proposed("Write", given)
    assert diff is not None and diff.endswith("[cut here: the whole diff is longer]\n")
    (work / "a").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    assert await Changes([place]).proposed("Write", given) == "[a is too large to be compared]\n"
