"""A disk that is really full: a file system of ten megabytes, of a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MOUNT = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs -o size=10m none "$0"; exec "$@"']

SCENE = """
import io, json, sys
from pathlib import Path
from claude_daemon.config import Log
from claude_daemon.telemetry.logging import configure, get_logger

disk, log = Path(sys.argv[1]), get_logger("claude_daemon.tests")
handle = configure(Log(), stream=io.StringIO(), path=disk / "daemon.log")

def fill(megabytes):
    with (disk / "ballast").open("ab", buffering=0) as file:
        try:
            for _ in range(megabytes * 16):
                file.write(b"x" * 65536)
        except OSError:
            pass

def both(number):
    log.info("http.access", number=number)
    log.info("task.settled", number=number)

both(0)
fill(7)
handle.look(1.0)
both(1)      # access lines are spared, for there is little room left
fill(9)
log.info("task.settled", number=2, pad="x" * 8000)
assert handle.lost == 1, handle.lost
log.info("task.settled", number=3, pad="x" * 8000)
handle.look(2.0)
assert handle.scarce is not None
(disk / "ballast").unlink()
handle.look(3.0)
assert handle.scarce is None
both(4)
handle.close()
lines = [json.loads(line) for line in (disk / "daemon.log").read_bytes().splitlines() if line.endswith(b"}")]
print(json.dumps([[line["event"], line.get("number")] for line in lines]))
print(handle.lost, handle.spared)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("needs Linux and unshare")
    if subprocess.run([*MOUNT, str(tmp_path), "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    return tmp_path


def test_a_full_disk_costs_access_lines_first_and_its_end_is_told(disk: Path) -> None:
    command = [*MOUNT, str(disk), sys.executable, "-c", SCENE, str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told, losses = done.stdout.splitlines()
    assert json.loads(told) == [
        ["http.access", 0],
        ["task.settled", 0],
        ["log.scarce", None],
        ["task.settled", 1],
        ["log.room_again", None],
        ["http.access", 4],
        ["task.settled", 4],
    ]
    lost, spared = map(int, losses.split())
    assert lost == 2 and spared == 1
