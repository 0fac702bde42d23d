"""What an agent of the service may use, under a real systemd that has delegated the service's cgroup to it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cgroups import without_controllers
from tests.debian import program
from tests.system.conftest import configure, uncover_proc
from tests.system.machine import Machine, missing

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(240),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    without_controllers,
]

CGROUP = "/sys/fs/cgroup/system.slice/claude-daemon.service"
MAX_PROCESSES = 128  # threads count, and Claude Code begins with a few dozen
LIMITS = (
    "[Service]\nEnvironment=CLAUDE_DAEMON_ENGINE__SANDBOX=bwrap "
    f"CLAUDE_DAEMON_AGENT__MAX_MEMORY_MB=1024 CLAUDE_DAEMON_AGENT__MAX_PROCESSES={MAX_PROCESSES} "
    "CLAUDE_DAEMON_ENGINE__SPARES=0\n"  # a spare has a cgroup of its own, and so it should
)
# Over the control socket: a task whose agent runs this with Bash; what the tool said, and what became of the task.
AGENT = """
import http.client, json, socket, sys
connection = http.client.HTTPConnection("daemon")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect("/run/claude-daemon/ctl.sock")
given = json.dumps({"command": sys.argv[1]})
body = json.dumps({"prompt": f"[[tool=Bash]] [[input={given}]] [[tokens=2]]", "tools": {"allow": ["Bash"]}})
headers = {"Claude-Daemon-Control": "1", "Content-Type": "application/json"}
connection.request("POST", "/control/v1/tasks", body, headers)
response = connection.getresponse()
answer = response.read().decode()
if response.status != 200:
    sys.exit(answer)
told = {}
for line in answer.splitlines():
    event = json.loads(line)
    if event["type"] == "tool.result":
        told["said"] = event["data"]["content"]
    elif event["type"] in ("task.succeeded", "task.failed"):
        told |= {"end": event["type"], "error": event["data"].get("error")}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def configured(installed: Machine) -> Machine:
    """A machine that is these tests' alone, whose service has the limits from its next start on."""
    program("bwrap", "bubblewrap")
    uncover_proc(installed)
    configure(installed, LIMITS)
    return installed


@pytest.fixture
def limited(configured: Machine) -> Machine:
    """With the drop-in, whatever the test before has done to it. To start a service takes seconds, so only then."""
    if agents(configured)["limits"] != "cgroup":
        restart(configured, "--agents-bash")
    return configured


def restart(machine: Machine, *flags: str) -> None:
    machine.run("claudectl", "service", "install", *flags)
    machine.run("claudectl", "service", "restart")
    machine.ready()


def agent(machine: Machine, command: str) -> Any:
    return json.loads(machine.run("python3", "-c", AGENT, command))


def agents(machine: Machine) -> Any:
    return json.loads(machine.run("claudectl", "status", "--json"))["agents"]


def cgroups(machine: Machine) -> list[str]:
    """Of agents; of the daemon there is one."""
    found = machine.run("find", CGROUP, "-mindepth", "1", "-type", "d", "-printf", "%f\n").split()
    assert [name for name in found if name.startswith("daemon-")] != []
    return [name for name in found if not name.startswith("daemon-")]


def test_with_the_drop_in_an_agent_has_its_limits_for_all_its_processes(limited: Machine) -> None:
    assert agents(limited)["limits"] == "cgroup"
    # files in memory, which are no process's: each is within its own limits
    told = agent(limited, "head -c 700M /dev/zero > /tmp/one; head -c 700M /dev/zero > ~/two; echo done")
    assert (told["end"], told["error"]["code"]) == ("task.failed", "memory_limit"), told
    assert "more than 1024 MB of memory" in told["error"]["message"]
    # until no more can be started, and no longer: what is to go on after it needs some, too
    forks = "for n in $(seq 300); do sleep 600 >&- 2>&- & echo $n; done 2>&1"
    told = agent(limited, f"setsid -w sh -c 'trap \"kill 0\" EXIT; {forks}' | grep -v fork | tail -n 1")
    assert (told["end"], 0 < int(told.get("said", 0)) < MAX_PROCESSES) == ("task.succeeded", True), told
    limited.until(lambda: agents(limited)["running"] == 0)
    limited.until(lambda: cgroups(limited) == [])  # each goes after its last process


def test_of_all_cgroups_the_service_may_write_its_own_alone(limited: Machine) -> None:
    enter = ("nsenter", f"--target={limited.show('MainPID')}", "--mount")
    tried = {
        path: limited.status(*enter, "test", "-w", path) == 0 for path in ("/sys/fs/cgroup", f"{CGROUP}/..", CGROUP)
    }
    assert list(tried.values()) == [False, False, True], tried


def test_a_daemon_that_was_killed_comes_back_with_its_limits(limited: Machine) -> None:
    before = limited.show("MainPID")
    limited.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "claude-daemon")
    limited.until(lambda: limited.show("MainPID") not in ("0", before))
    limited.ready()
    assert agents(limited)["limits"] == "cgroup"
    assert (agent(limited, "echo still here")["said"], cgroups(limited)) == ("still here", [])


def test_without_the_drop_in_each_process_has_its_limits_and_it_is_told(limited: Machine) -> None:
    restart(limited)
    (line,) = limited.journal("agents.no_cgroups")[-1:]
    assert (line["level"], "cannot be written" in line["reason"]) == ("info", True), line
    assert agents(limited)["limits"] in ("rlimit", "none")
