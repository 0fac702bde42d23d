"""What a task leaves behind is removed, however it was left."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

from claude_daemon.engine.removal import remove_tree
from tests.ordinary import NOBODY

# Deeper than Python recurses, than a process has descriptors, and than a path can name.
DEEP = 3000


def test_files_directories_and_links_go_and_what_links_lead_to_stays(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("x")
    (tree / "a" / "b" / ".removed-0").mkdir()
    (tree / ".removed-0").write_text("a name of ours, taken")
    (tree / "link").symlink_to(kept)
    (tree / "a" / "link").symlink_to(kept / "file")
    (tree / "a" / "broken").symlink_to("nowhere")
    os.mkfifo(tree / "pipe")
    assert remove_tree(tree)
    assert not os.path.lexists(tree)
    assert (kept / "file").read_text() == "kept"


def test_what_is_not_there_is_gone_and_a_link_or_a_file_is_not_ours_to_empty(tmp_path: Path) -> None:
    assert remove_tree(tmp_path / "nothing")
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    assert not remove_tree(tmp_path / "link")
    (tmp_path / "file").write_text("x")
    assert not remove_tree(tmp_path / "file")
    assert (tmp_path / "kept").is_dir()


def test_any_depth_goes_with_a_few_descriptors(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    directory = os.open(tree, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("d", dir_fd=directory)
        os.close(os.open("file", os.O_CREAT, dir_fd=directory))
        deeper = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = deeper
    os.close(directory)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in Path("/dev/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, hard))
    try:
        assert remove_tree(tree)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_its_owner_may_not_enter_goes_all_the_same(tmp_path: Path) -> None:
    """As a user whom modes stop, also where the tests run as root."""
    script = f"""
        import os, pathlib, sys
        from claude_daemon.engine.removal import remove_tree
        if os.geteuid() == 0:
            os.chown(".", {NOBODY}, {NOBODY})
            os.setgroups([])
            os.setgid({NOBODY})
            os.setuid({NOBODY})
        tree = pathlib.Path("tree")
        for path in ("a/b/c", "d"):
            (tree / path).mkdir(parents=True)
        (tree / "a" / "b" / "c" / "file").write_text("x")
        for path, mode in (("a/b/c", 0o000), ("a/b", 0o500), ("a", 0o100), ("d", 0o000), ("", 0o500)):
            (tree / path).chmod(mode)
        sys.exit(0 if remove_tree(tree) and not os.path.lexists("tree") else "it is still there")
    """
    argv = [sys.executable, "-c", textwrap.dedent(script)]
    run = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
