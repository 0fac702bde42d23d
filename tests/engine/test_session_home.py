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


def test_of_its_configuration_a_new_process_finds_the_conversations_alone(home: Home, tmp_path: Path) -> None:
    write(home, MESSAGE)
    (home.config / "settings.json").write_text("{}")
    (home.config / "plugins" / "deep").mkdir(parents=True)
    (home.config / "plugins" / "deep" / "file").touch()
    os.mkfifo(home.config / ".claude.json")
    (tmp_path / "outside").mkdir()
    (home.config / "agents").symlink_to(tmp_path / "outside")
    home.make()
    assert [path.name for path in home.config.iterdir()] == ["projects"]
    assert home.holds(NAME, MESSAGE)


def test_conversations_are_not_looked_for_elsewhere(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "sess_2")
    other.make()
    write(other, MESSAGE)
    (home.config / "projects").symlink_to(other.config / "projects")
    home.make()
    assert home.transcript(NAME) is None
    assert other.holds(NAME, MESSAGE)


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


def test_a_copy_takes_no_more_of_the_disk_than_its_source(home: Home, tmp_path: Path) -> None:
    home.work.mkdir()
    kept = {4096 * 300: b"in the middle", 4096 * 5000: b"at the end"}
    with (home.work / "holes").open("wb") as file:
        for position, text in kept.items():
            file.seek(position)
            file.write(text)
    with (home.work / "hole").open("wb") as file:
        file.truncate(50 * 1024 * 1024)
    copy = Home(tmp_path / "sess_2")
    copy.copy(home)
    for name in ("holes", "hole"):
        one, other = home.work / name, copy.work / name
        assert one.read_bytes() == other.read_bytes()
        assert other.stat().st_blocks <= one.stat().st_blocks
    assert copy.work.stat().st_mtime_ns == home.work.stat().st_mtime_ns


def test_a_copy_may_be_deep_and_have_directories_that_nobody_may_write(home: Home, tmp_path: Path) -> None:
    home.work.mkdir()
    depth, directory = 1100, os.open(home.work, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=directory)
        deeper = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = deeper
    os.close(directory)
    closed = home.work / "closed"
    closed.mkdir()
    (closed / "file").write_text("kept")
    (closed / "file").chmod(0o400)
    closed.chmod(0o500)
    copy = Home(tmp_path / "sess_2")
    copy.copy(home)
    assert os.stat(os.path.join(copy.work, *["d"] * depth)).st_mode == (home.work / "d").stat().st_mode  # noqa: PTH116, PTH118
    assert (copy.work / "closed" / "file").read_text() == "kept"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (copy.work / "closed", copy.work / "closed" / "file")] == [
        0o500,
        0o400,
    ]
    for one in (home, copy):
        one.remove()  # pytest's own way of removing them goes no deeper than a thousand


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
