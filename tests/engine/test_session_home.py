"""What a session keeps on the disk, with all that its own tools may have put there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from claude_daemon.engine.session_home import Home

NAME = "0b1f3f0e-transcript"
MESSAGE = "5e1c-message"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "sess_1")
    made.make()
    return made


def write(home: Home, text: str) -> Path:
    directory = home.config / "projects" / "-work"
    directory.mkdir(parents=True)
    path = directory / f"{NAME}.jsonl"
    path.write_text(text)
    return path


def test_it_is_nobody_elses(home: Home) -> None:
    assert [stat.S_IMODE(path.stat().st_mode) for path in (home.directory, home.config)] == [0o700, 0o700]


def test_a_transcript_is_found_by_its_name(home: Home) -> None:
    assert home.transcript(NAME) is None
    assert home.transcript(NAME) is None
    path = write(home, "")
    assert home.transcript(NAME) == path
    assert home.transcript("another") is None


@pytest.mark.parametrize("before", [0, 1, 2**20 - 5, 2**20, 2**21 - 1])
def test_a_message_is_found_wherever_it_stands(home: Home, before: int) -> None:
    write(home, "x" * before + MESSAGE + "y")
    assert home.holds(NAME, MESSAGE)
    assert not home.holds(NAME, "5e1c-other")


def test_what_is_no_file_is_no_transcript_and_is_not_waited_for(home: Home) -> None:
    path = write(home, "")
    path.unlink()
    os.mkfifo(path)
    assert not home.holds(NAME, MESSAGE)
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert home.transcript(NAME) is None


def test_a_copy_has_files_and_links_as_they_are_and_nothing_else(home: Home, tmp_path: Path) -> None:
    write(home, MESSAGE)
    home.work.mkdir()
    (home.work / "link").symlink_to("/etc/passwd")
    os.mkfifo(home.work / "fifo")
    copy = Home(tmp_path / "sess_2")
    copy.copy(home)
    assert copy.holds(NAME, MESSAGE)
    assert (copy.work / "link").is_symlink()
    assert sorted(path.name for path in copy.work.iterdir()) == ["link"]


def test_a_copy_is_made_once_and_whole(home: Home, tmp_path: Path) -> None:
    write(home, MESSAGE)
    copy = Home(tmp_path / "sess_2")
    (copy.directory / "config.part").mkdir(parents=True)  # of one that was cut short
    (copy.directory / "config.part" / "half").touch()
    copy.copy(home)
    assert not (copy.config / "half").exists()
    (copy.config / "own").touch()
    copy.copy(home)
    assert (copy.config / "own").exists()


def test_nothing_is_left_of_one_that_is_removed(home: Home) -> None:
    write(home, MESSAGE)
    home.remove()
    assert not home.directory.exists()
    home.remove()
