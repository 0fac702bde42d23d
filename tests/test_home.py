"""The home: who may have written what is in it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from claude_daemon.home import BadKeyFile, Unsafe, local_secret, take

KEY = "cd_" + "a" * 43
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def home_with(tmp_path: Path, mode: int, *names: str) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    for name in names:
        (home / name).touch()
    home.chmod(mode)
    return home


def secret_at(path: Path) -> str:
    repairs: list[str] = []
    secret = local_secret(path, os.urandom, repairs.append)
    assert repairs == []
    return secret


def test_a_home_is_made_for_us_alone(tmp_path: Path) -> None:
    assert take(tmp_path / "home") is None
    assert mode_of(tmp_path / "home") == 0o700
    assert take(tmp_path / "home") is None


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o711])
@pytest.mark.parametrize("names", [[], ["config.toml", "daemon.db-wal", "log", "run", "local.key"]])
def test_a_home_that_others_may_read_is_repaired_and_it_is_said(tmp_path: Path, mode: int, names: list[str]) -> None:
    home = home_with(tmp_path, mode, *names)
    said = take(home)
    assert said is not None and f"{mode:04o}" in said
    assert mode_of(home) == 0o700


@pytest.mark.parametrize("name", [".bashrc", "projects", "passwd"])
def test_a_directory_that_holds_what_is_not_ours_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    home = home_with(tmp_path, 0o755, "config.toml", name)
    with pytest.raises(Unsafe, match=f"it holds {name}"):
        take(home)
    assert mode_of(home) == 0o755


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o1777, 0o702])
def test_a_home_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    home = home_with(tmp_path, mode)
    with pytest.raises(Unsafe, match=f"chmod 700 {home}"):
        take(home)
    assert mode_of(home) == mode


@root_only
def test_somebody_elses_home_and_key_are_refused(tmp_path: Path) -> None:
    home = home_with(tmp_path, 0o700)
    key = home / "local.key"
    key.write_text(KEY)
    os.chown(key, 12345, -1)
    with pytest.raises(Unsafe, match="belongs to uid 12345"):
        secret_at(key)
    os.chown(home, 12345, -1)
    with pytest.raises(Unsafe, match="belongs to uid 12345"):
        take(home)


def test_a_home_that_is_no_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(NotADirectoryError, match="is not a directory"):
        take(tmp_path / "home")


def test_a_key_is_made_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "local.key"
    secret = secret_at(path)
    assert secret_at(path) == secret
    assert path.read_text() == secret + "\n"
    assert mode_of(path) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["local.key"]


def test_a_start_that_crashed_while_it_made_the_key_leaves_no_key(tmp_path: Path) -> None:
    (tmp_path / "local.key.new").write_text("cd_half")
    assert len(secret_at(tmp_path / "local.key")) == 46
    assert [file.name for file in tmp_path.iterdir()] == ["local.key"]


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "is empty"), ("\n \n", "is empty"), ("cd_short", "does not hold a key"), (KEY + " x", "does not hold a key")],
)
def test_a_file_without_a_key_is_a_clear_error_and_stays(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "local.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(BadKeyFile, match=f"local.key {why}.*: delete it"):
        secret_at(path)
    assert path.read_text() == text


def test_bytes_that_are_no_text_are_no_key(tmp_path: Path) -> None:
    path = tmp_path / "local.key"
    path.write_bytes(b"\xff" * 5000)
    path.chmod(0o600)
    with pytest.raises(BadKeyFile) as bad:
        secret_at(path)
    assert len(str(bad.value)) < 300


def test_a_key_that_others_could_read_is_repaired_and_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "local.key"
    path.write_text(KEY)
    path.chmod(0o644)
    repairs: list[str] = []
    assert local_secret(path, os.urandom, repairs.append) == KEY
    assert mode_of(path) == 0o600
    assert len(repairs) == 1 and "0644" in repairs[0] and KEY not in repairs[0]


def test_a_key_that_others_could_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "local.key"
    path.write_text(KEY)
    path.chmod(0o666)
    with pytest.raises(Unsafe, match="0666"):
        secret_at(path)


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(KEY)
    (tmp_path / "local.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        secret_at(tmp_path / "local.key")
