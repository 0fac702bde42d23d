"""The machine that the other tests boot leaves nothing of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.machine import Machine, missing

pytestmark = [pytest.mark.system, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


def test_it_boots_alone_and_is_gone_without_a_trace() -> None:
    mounts = Path("/proc/self/mounts").read_text()
    with Machine() as machine:
        assert machine.run("cat", "/proc/1/comm") == "systemd\n"
        assert machine.run("ls", "/sys/class/net").split() == ["lo"]
        machine.write("/etc/written", "in there")
        assert not Path("/etc/written").exists()
        sleeper = machine.start("sleep", "1000")
        cgroup = machine.cgroup
        assert cgroup.exists()
    assert sleeper.wait(timeout=20) != 0
    assert not cgroup.exists()
    assert Path("/proc/self/mounts").read_text() == mounts
