"""The sample for logrotate, as logrotate itself takes it."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from pathlib import Path

from tests.debian import program

SAMPLE = Path(__file__).parents[2] / "etc" / "logrotate" / "claude-daemon"


class Rotation:
    """The sample over a log of the test's, with a systemctl that notes what it is told."""

    def __init__(self, home: Path, *, active: bool) -> None:
        self.home = home
        self.log = home / "log" / "daemon.log"
        self.log.parent.mkdir(mode=0o700)
        self.log.write_text("a line\n")
        user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
        text = SAMPLE.read_text().replace("/var/log/claude-daemon", str(self.log.parent))
        self._configuration = home / "claude-daemon"
        self._configuration.write_text(text.replace("claude-daemon claude-daemon", f"{user} {group}"))
        self._configuration.chmod(0o644)
        systemctl = home / "systemctl"
        systemctl.write_text(
            f'#!/bin/sh\necho "$*" >>{home}/told\ncase "$*" in *is-active*) {str(active).lower()};; esac\n'
        )
        systemctl.chmod(0o755)

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [
            str(program("logrotate", "logrotate")),
            *options,
            "--state",
            str(self.home / "state"),
            str(self._configuration),
        ]
        environ = {**os.environ, "PATH": f"{self.home}:/usr/bin:/bin"}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)

    @property
    def told(self) -> list[str]:
        return (self.home / "told").read_text().splitlines()


def test_logrotate_understands_the_sample(tmp_path: Path) -> None:
    done = Rotation(tmp_path, active=True).run("--debug")
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr
    assert "after 1 days (14 rotations)" in done.stderr


def test_a_daemon_that_runs_is_told_to_open_its_log_anew_and_no_worker_is(tmp_path: Path) -> None:
    rotation = Rotation(tmp_path, active=True)
    done = rotation.run("--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert rotation.log.with_name("daemon.log.1").read_text() == "a line\n"
    assert (rotation.log.read_text(), rotation.log.stat().st_mode & 0o777) == ("", 0o600)
    assert rotation.told[1:] == ["kill --kill-who=main --signal=SIGUSR1 claude-daemon.service"]


def test_the_log_of_a_daemon_that_does_not_run_is_rotated_without_a_word(tmp_path: Path) -> None:
    rotation = Rotation(tmp_path, active=False)
    done = rotation.run("--force")
    assert (done.returncode, done.stderr) == (0, "")
    assert rotation.told == ["--quiet is-active claude-daemon.service"]
