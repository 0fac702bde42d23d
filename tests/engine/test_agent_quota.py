"""What an agent keeps in a directory of its own."""

from __future__ import annotations

import os
from pathlib import Path

from claude_daemon.engine.agent_quota import larger_than

MIB = 1024 * 1024


def test_what_lies_beneath_is_counted_however_deep(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x" * MIB)
    assert larger_than(MIB - 1, tmp_path)
    assert not larger_than(2 * MIB, tmp_path)


def test_many_small_files_are_not_free(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / str(number)).touch()
    assert larger_than(100 * 1024, tmp_path)
    assert not larger_than(MIB, tmp_path)


def test_what_a_symlink_points_to_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"x" * MIB)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "work" / "loop").symlink_to(tmp_path / "work")
    assert not larger_than(MIB // 2, tmp_path / "work")


def test_a_file_of_holes_takes_no_disk(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        os.truncate(file.fileno(), 64 * MIB)
    assert not larger_than(MIB, tmp_path)


def test_directories_are_counted_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * MIB)
    assert larger_than(3 * MIB // 2, tmp_path / "a", tmp_path / "b")
    assert not larger_than(3 * MIB // 2, tmp_path / "a")


def test_what_is_not_there_takes_nothing(tmp_path: Path) -> None:
    assert not larger_than(0, tmp_path / "gone")
