"""Cgroups of agents: what is found out on directories that look like them, what is kept on the kernel's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from claude_daemon.engine import cgroup
from claude_daemon.engine.cgroup import Cgroups, Group, NotDelegated, mark_of, own_cgroup
from claude_daemon.engine.sandbox import Limits
from tests.cgroups import cgroup2, remove_cgroup, without_controllers, without_root
from tests.support import PATIENCE, alive

PATIENCE_S = 20.0 * PATIENCE
LIMITS = Limits(max_processes=24, max_memory_mb=64, max_file_mb=64)
MOUNTED = "31 23 0:28 / {} rw,relatime - cgroup2 cgroup2 rw"


class Look:
    """Directories that look like a delegated cgroup, and a /proc/self that says that this process is in it."""

    def __init__(self, top: Path) -> None:
        self.home = top / "home"
        self.process = top / "proc"
        self.base = top / "fs" / "service"
        for path in (self.home, self.process, self.base):
            path.mkdir(parents=True)
        self.says("/service")
        (self.process / "mountinfo").write_text(MOUNTED.format(top / "fs"))
        (self.base / "cgroup.controllers").write_text("cpu memory pids\n")
        (self.base / "cgroup.procs").write_text(f"{os.getpid()}\n")
        (self.base / "cgroup.subtree_control").touch()

    def says(self, path: str) -> None:
        (self.process / "cgroup").write_text(f"4:memory:/elsewhere\n0::{path}\n")

    def leaf(self) -> Path:
        """The one that the daemon makes, with the files that the kernel puts into it."""
        path = self.base / f"daemon-{mark_of(self.home)}"
        path.mkdir()
        for name in ("memory.max", "memory.oom.group", "pids.max", "cgroup.kill"):
            (path / name).touch()
        return path

    def take(self) -> Cgroups:
        return Cgroups.take(self.home, self.process)


@pytest.fixture
def look(tmp_path: Path) -> Look:
    return Look(tmp_path)


def refused(look: Look) -> str:
    with pytest.raises(NotDelegated) as why:
        look.take()
    assert [path for path in look.base.iterdir() if path.is_dir()] == []
    return str(why.value)


# where there can be none


@pytest.mark.parametrize(
    ("controllers", "absent"), [("cpu io", "memory and pids"), ("cpu pids", "memory"), ("hugetlb memory", "pids")]
)
def test_without_a_controller_there_are_no_limits_to_set(look: Look, controllers: str, absent: str) -> None:
    (look.base / "cgroup.controllers").write_text(controllers)
    assert refused(look).endswith(f"has no controller for {absent}")


@pytest.mark.parametrize("file", ["cgroup.procs", "cgroup.subtree_control"])
def test_what_cannot_be_written_is_not_delegated(look: Look, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != file)  # root may write whatever there is
    assert refused(look).endswith(f"{file} cannot be written")


def test_a_cgroup_with_others_in_it_is_not_divided(look: Look) -> None:
    (look.base / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")
    assert "others are in" in refused(look)


def test_a_directory_that_does_not_know_this_process_is_another_namespaces(look: Look) -> None:
    (look.base / "cgroup.procs").write_text("0\n")
    assert "is not where the daemon is" in refused(look)


@pytest.mark.parametrize("path", ["/../outside", "/service (deleted)"])
def test_a_cgroup_that_cannot_be_seen_from_here_is_none(look: Look, path: str) -> None:
    look.says(path)
    with pytest.raises(NotDelegated):
        look.take()


def test_a_machine_with_the_old_cgroups_alone_has_none(look: Look) -> None:
    (look.process / "cgroup").write_text("4:memory:/service\n")
    with pytest.raises(NotDelegated, match="no cgroup v2"):
        look.take()
    (look.process / "cgroup").unlink()
    with pytest.raises(NotDelegated, match="no cgroups here"):
        look.take()


def test_a_cgroup_is_found_where_a_part_of_the_tree_is_mounted(look: Look, tmp_path: Path) -> None:
    look.says("/machine/service/deep")
    (look.process / "mountinfo").write_text(
        "30 23 0:27 / /proc rw - proc proc rw\n36 23 0:28 /machine /mnt rw,nosuid shared:9 - cgroup2 none rw\n"
    )
    assert own_cgroup(look.process) == Path("/mnt/service/deep")


# what is done where there can be


def test_a_kernel_that_cannot_end_a_cgroup_is_told_and_all_is_as_before(look: Look) -> None:
    with pytest.raises(NotDelegated, match=r"the kernel has no memory\.max"):
        look.take()
    assert (look.base / "cgroup.procs").read_text() == str(os.getpid())
    assert (look.base / "cgroup.subtree_control").read_text() == "-memory -pids"


def test_a_failure_on_the_way_is_raised_as_what_it_is_and_the_daemon_goes_back(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, str]] = []
    write = Path.write_text

    def busy(self: Path, text: str, *rest: str) -> int:
        written.append((str(self.relative_to(look.base)), text))
        if self.name == "cgroup.subtree_control" and text.startswith("+"):
            raise OSError(16, "Device or resource busy")
        return write(self, text, *rest)

    monkeypatch.setattr(Path, "write_text", busy)
    with pytest.raises(OSError, match="busy"):
        look.take()
    here = str(os.getpid())
    assert written[0] == (f"daemon-{mark_of(look.home)}/cgroup.procs", here)
    assert written[-1] == ("cgroup.procs", here)


def test_the_daemon_moves_one_deeper_and_those_beneath_may_have_limits(look: Look) -> None:
    leaf = look.leaf()
    taken = look.take()
    assert (taken.base, taken.leaf) == (look.base, leaf)
    assert (leaf / "cgroup.procs").read_text() == str(os.getpid())
    assert (look.base / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_a_successor_finds_itself_where_its_predecessor_is_and_divides_the_same(look: Look) -> None:
    leaf = look.leaf()
    look.take()
    look.says(f"/service/{leaf.name}")
    (look.base / "cgroup.procs").write_text("")
    assert look.take().base == look.base


def test_two_homes_in_one_cgroup_have_names_of_their_own(look: Look) -> None:
    leaf = look.leaf()
    other = Cgroups(look.base, look.base / "daemon-other", "other")
    groups = [cgroups.make("wrk_1", LIMITS).path.name for cgroups in (look.take(), other)]
    assert groups == [f"agent-{leaf.name.removeprefix('daemon-')}-wrk_1", "agent-other-wrk_1"]


def test_an_agents_limits_are_those_of_the_configuration(look: Look) -> None:
    look.leaf()
    group = look.take().make("wrk_1", LIMITS)
    set_to = {path.name: path.read_text() for path in group.path.iterdir()}
    assert set_to == {
        "memory.max": str(64 * 1024 * 1024),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "24",
    }


@pytest.mark.parametrize(
    ("events", "over"),
    [
        ("low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 1\n", True),
        ("low 0\nhigh 0\nmax 12\noom 0\noom_kill 3\n", False),  # the whole machine was short of it
        ("low 0\nhigh 0\nmax 12\noom 0\noom_kill 0\n", False),
        ("", False),
    ],
)
def test_who_was_ended_for_its_memory_is_told_from_who_was_ended_for_the_machines(
    tmp_path: Path, events: str, over: bool
) -> None:
    (tmp_path / "memory.events").write_text(events)
    assert Group(path=tmp_path, memory_mb=1).out_of_memory is over


def test_a_cgroup_that_is_gone_says_nothing_and_needs_no_end(tmp_path: Path) -> None:
    group = Group(path=tmp_path / "gone", memory_mb=1)
    assert (group.out_of_memory, group.end()) == (False, True)


def test_a_command_that_cannot_be_put_in_does_not_start(tmp_path: Path) -> None:
    group = Group(path=tmp_path / "gone", memory_mb=1)
    done = subprocess.run(group.entering(["touch", str(tmp_path / "started")]), capture_output=True, check=False)
    assert (done.returncode, (tmp_path / "started").exists()) == (125, False)


# on the kernel's own


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """Without limits: those need controllers."""
    path = cgroup2() / f"claude-daemon-test-{os.getpid()}-{request.node.name}"
    path.mkdir()
    yield Group(path=path, memory_mb=1)
    remove_cgroup(path)


STRAY = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sh", ["sh", "-c", "echo $$; exec sleep 600"], {})
    os._exit(0)
os.wait()
"""


@without_root
def test_a_command_is_in_from_its_first_moment_and_so_is_what_it_starts(group: Group) -> None:
    argv = group.entering(["sh", "-c", "cat /proc/self/cgroup; cat /proc/self/cgroup"])
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert [line.rpartition("/")[2] for line in said.splitlines() if line.startswith("0::")] == [group.path.name] * 2


@without_root
def test_the_end_of_a_cgroup_is_that_of_a_stray_that_nobody_could_find(group: Group) -> None:
    process = subprocess.Popen(group.entering([sys.executable, "-c", STRAY]), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    stray = int(process.stdout.readline())
    process.wait(PATIENCE_S)
    (group.path / "beneath").mkdir()
    assert alive(stray)
    assert group.end()
    assert (group.path.exists(), alive(stray)) == (False, False)
    process.stdout.close()


STAND_IN = """
import json, os, subprocess, sys
from pathlib import Path
from claude_daemon.engine.cgroup import Cgroups, NotDelegated
from claude_daemon.engine.sandbox import Limits

home, base = map(Path, sys.argv[1:])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
limits = Limits(max_processes=24, max_memory_mb=64, max_file_mb=64)

def run(worker, command):
    group = cgroups.make(worker, limits)
    done = subprocess.run(group.entering(["sh", "-c", command]), capture_output=True, text=True)
    return done.returncode, done.stdout.strip(), group.out_of_memory, group.end()

where = lambda: Path("/proc/self/cgroup").read_text().strip().rpartition("/")[2]
told = {"begin": where()}
cgroups = Cgroups.take(home)
told["taken"] = where().startswith("daemon-")
told["hog"] = run("hog", "head -c 200M /dev/zero | tail -c 150M | wc -c")
told["modest"] = run("modest", "head -c 20M /dev/zero | tail -c 10M | wc -c")
told["forks"] = run("forks", "for n in $(seq 200); do sleep 20 >&- 2>&- & echo $n; done | tail -n 1")
left = cgroups.make("left", limits)
stray = subprocess.Popen(left.entering(["sh", "-c", "echo; exec sleep 600"]), stdout=subprocess.PIPE)
stray.stdout.readline()
told["swept"] = [name.rpartition("-")[2] for name in cgroups.sweep()]
told["stray"] = stray.wait()
cgroups.give_back()
told["end"] = where()
told["beneath"] = [path.name for path in base.glob("*/")]
told["again"] = Cgroups.take(home).leaf.name == cgroups.leaf.name
cgroups.give_back()
print(json.dumps(told))
"""


@without_root
@without_controllers
def test_a_user_who_was_given_a_cgroup_holds_agents_to_limits_with_it(tmp_path: Path) -> None:
    base = cgroup2() / f"claude-daemon-test-{os.getpid()}"
    base.mkdir()
    try:
        for path in (base, base / "cgroup.procs", base / "cgroup.subtree_control"):
            os.chown(path, 65534, 65534)
        enter = ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(base)]
        done = subprocess.run(
            [*enter, sys.executable, "-c", STAND_IN, str(tmp_path), str(base)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
    finally:
        remove_cgroup(base)
    assert (told["begin"], told["taken"], told["end"], told["beneath"]) == (base.name, True, base.name, [])
    status, said, over, ended = told["hog"]
    assert (status, said, over, ended) == (-9, "", True, True), "all of it ends, the shell included"
    assert told["modest"] == [0, str(10 * 1024 * 1024), False, True]
    _, said, over, ended = told["forks"]
    assert (0 < int(said) < 24, over, ended) == (True, False, True), said
    assert (told["swept"], told["stray"], told["again"]) == (["left"], -9, True)


@without_root
def test_the_end_waits_for_the_last_process_and_no_longer(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_END_S", 3600.0)  # who waits longer is still waiting when the test's time is up
    process = subprocess.Popen(
        group.entering(["sh", "-c", "sleep 600 & sleep 600 & echo; wait"]), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert group.end()
    process.stdout.close()
    process.wait()
