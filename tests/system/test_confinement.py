"""What the service sees of the machine: its own directories, and the roots that it was installed with."""

from __future__ import annotations

import pytest

from tests.system.conftest import configure
from tests.system.machine import Machine, missing

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(120),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

ROOTS = ("/home/someone/project", "/srv/project")
ELSEWHERE = ("/home/someone/secret", "/root/secret")
OWN = ("/var/lib/claude-daemon", "/var/log/claude-daemon", "/var/cache/claude-daemon")
ITS_USER = ("setpriv", "--reuid=claude-daemon", "--regid=claude-daemon", "--clear-groups")

REQUIRED = "[Service]\nEnvironment=CLAUDE_DAEMON_ENGINE__SANDBOX=bwrap\n"
# Over the control socket: a task whose agent writes a file with Bash and reads it; what became of it.
AGENT = """
import http.client, json, socket
connection = http.client.HTTPConnection("daemon")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect("/run/claude-daemon/ctl.sock")
call = '[[tool=Bash]] [[input={"command":"id -un > who && cat who"}]] [[tokens=2]]'
body = json.dumps({"prompt": call, "tools": {"allow": ["Bash"]}})
headers = {"Claude-Daemon-Control": "1", "Content-Type": "application/json"}
connection.request("POST", "/control/v1/tasks", body, headers)
response = connection.getresponse()
for line in response.read().decode().splitlines():
    told = json.loads(line)
    if response.status != 200:
        print(response.status, told["code"], told["detail"])
    elif told["type"] in ("tool.result", "task.succeeded", "task.failed"):
        print(told["type"], told["data"].get("content", ""), told["data"].get("error", ""))
"""


def where_it_lives(machine: Machine, test: str, *paths: str, user: tuple[str, ...] = ITS_USER) -> list[bool]:
    """What ``test`` says of each path there: -d, is it there; -w, can it be written."""
    enter = ("nsenter", f"--target={machine.show('MainPID')}", "--mount", *user)
    return [machine.status(*enter, "test", test, path) == 0 for path in paths]


@pytest.fixture
def rooted(service: Machine) -> Machine:
    """The service with roots below a home and elsewhere. Modes keep its user from nothing here."""
    service.run("mkdir", "-p", *ROOTS, *ELSEWHERE)
    service.run("chmod", "0777", "/root", "/home/someone", *ROOTS, *ELSEWHERE)
    service.run("claudectl", "service", "install", *(word for root in ROOTS for word in ("--root", root)))
    service.run("claudectl", "service", "restart")
    return service


def test_roots_are_there_and_can_be_written_and_nothing_else_of_a_home_is(rooted: Machine) -> None:
    assert where_it_lives(rooted, "-w", *ROOTS) == [True, True]
    assert where_it_lives(rooted, "-d", *ELSEWHERE) == [False, False]
    rooted.run("claudectl", "service", "install")
    rooted.run("claudectl", "service", "restart")
    assert where_it_lives(rooted, "-d", *ROOTS) == [False, True]
    assert where_it_lives(rooted, "-w", *ROOTS) == [False, False]


def test_not_even_root_could_write_the_machine_from_there(service: Machine) -> None:
    paths = ("/etc", "/usr", "/opt/claude-daemon", "/srv", "/sys/fs/cgroup")
    assert where_it_lives(service, "-d", *paths) == [True] * len(paths)
    assert where_it_lives(service, "-w", *paths, user=()) == [False] * len(paths)


def test_its_directories_are_its_users_alone(service: Machine) -> None:
    assert where_it_lives(service, "-w", *OWN) == [True] * len(OWN)
    assert service.run("stat", "-c", "%U %a", *OWN) == "claude-daemon 700\n" * len(OWN)


def test_an_agent_runs_bash_with_the_drop_in_for_agents_and_is_refused_without(bubblewrapped: Machine) -> None:
    machine = bubblewrapped
    configure(machine, REQUIRED)
    machine.run("claudectl", "service", "restart")
    machine.run("claudectl", "ready", "--wait", "60")
    refused = machine.run("python3", "-c", AGENT)
    assert refused.startswith("403 sandbox_unavailable"), refused
    assert "without a sandbox only Read, Grep and Glob are allowed here" in refused
    machine.run("claudectl", "service", "install", "--agents-bash")
    machine.run("claudectl", "service", "restart")
    machine.run("claudectl", "ready", "--wait", "60")
    done = machine.run("python3", "-c", AGENT)
    assert done.splitlines()[0].startswith("tool.result claude-daemon"), done
    assert "task.succeeded" in done
    machine.run("claudectl", "service", "install")
