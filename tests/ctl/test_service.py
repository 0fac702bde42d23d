"""claudectl service: what it writes, whom it asks, and whom it believes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.supervise.units import LABEL, MARKER
from claudectl import sockets
from claudectl.commands import service
from claudectl.errors import Conflict, ControlError, Denied
from claudectl.options import Options
from claudectl.supervisors import Programs, Supervisor, Unit, Wish, answering, choose
from claudectl.supervisors.kind import run
from claudectl.supervisors.launchd import Launchd
from claudectl.supervisors.systemd import Systemd, SystemdOfTheMachine, SystemdOfTheUser
from tests.ctl.conftest import Daemon, Invoke, Reply

PROGRAM = """#!{python}
import json, sys
from pathlib import Path
home = Path({home!r})
with home.joinpath("asked").open("a") as asked:
    asked.write(json.dumps([Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
answers = json.loads(home.joinpath("answers").read_text())
for words, (status, said) in answers.items():
    if words in " ".join(sys.argv[1:]):
        print(said)
        sys.exit(status)
"""
UNIT = "LoadState={load}\nActiveState={active}\nSubState={sub}\nMainPID={pid}\nUnitFileState=enabled"


class Machine:
    """systemctl and its like, which note what they are asked, and answer as told."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.answers: dict[str, tuple[int, str]] = {}
        self.says()
        for name in ("systemctl", "systemd-sysusers", "launchctl"):
            path = home / name
            path.write_text(PROGRAM.format(python=sys.executable, home=str(home)))
            path.chmod(0o755)

    def says(self, words: str = "", said: str = "", status: int = 0) -> None:
        if words:
            self.answers[words] = (status, said)
        (self.home / "answers").write_text(json.dumps(self.answers))

    def unit(self, *, load: str = "loaded", active: str = "active", sub: str = "running", pid: int = 0) -> None:
        self.says("show claude-daemon.service", UNIT.format(load=load, active=active, sub=sub, pid=pid))

    @property
    def asked(self) -> list[list[str]]:
        file = self.home / "asked"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def verbs(self) -> list[str]:
        """What was to be done; looks are left out, and that former failures are not to count."""
        words = [" ".join(word for word in line[1:] if not word.startswith("--")) for line in self.asked]
        return [line for line in words if not line.startswith(("show", "print", "reset-failed"))]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    home = tmp_path / "bin"
    home.mkdir()
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    return Machine(home)


@pytest.fixture
def of_the_machine(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SystemdOfTheMachine:
    """Its files go into a directory of the test's; the test counts as root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    supervisor = SystemdOfTheMachine(tmp_path / "system", tmp_path / "sysusers.d" / "claude-daemon.conf")
    monkeypatch.setattr(service, "choose", lambda scope: supervisor)
    return supervisor


def wish(tmp_path: Path, *prefixes: Path, **fields: Any) -> Wish:
    daemon = tmp_path / "opt" / "claude-daemon"
    daemon.parent.mkdir(exist_ok=True)
    daemon.touch()
    programs = Programs(daemon=daemon, claudectl=tmp_path / "opt" / "claudectl", prefixes=prefixes)
    return Wish(programs=programs, listen="127.0.0.1:8006", **fields)


def files_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


# install and uninstall


def test_install_writes_the_units_and_enables_them_and_again_changes_nothing(
    of_the_machine: SystemdOfTheMachine, machine: Machine, tmp_path: Path
) -> None:
    said = list(of_the_machine.install(wish(tmp_path), start=True))
    written = files_below(tmp_path / "system")
    assert {"claude-daemon.service", "claude-daemon.socket", "claude-daemon-control.socket"} < written
    assert said[-1] == "started"
    service_units = "claude-daemon.service claude-daemon.socket claude-daemon-control.socket"
    assert machine.verbs == [
        str(tmp_path / "sysusers.d" / "claude-daemon.conf"),
        "daemon-reload",
        f"enable {service_units}",
        "start claude-daemon.socket claude-daemon-control.socket claude-daemon.service",
    ]
    again = list(of_the_machine.install(wish(tmp_path), start=False))
    assert not any(line.startswith(("wrote", "removed")) for line in again)
    assert files_below(tmp_path / "system") == written


def test_what_is_not_wished_any_more_is_removed(of_the_machine: SystemdOfTheMachine, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch()
    everything = wish(tmp_path, roots=[tmp_path], credentials={"ANTHROPIC_API_KEY": key}, agents_bash=True)
    list(of_the_machine.install(everything, start=False))
    drop_ins = tmp_path / "system" / "claude-daemon.service.d"
    assert files_below(drop_ins) == {"10-agents-bash.conf", "20-roots.conf", "30-credentials.conf"}
    assert f"LoadCredential=ANTHROPIC_API_KEY:{key}" in (drop_ins / "30-credentials.conf").read_text()
    said = list(of_the_machine.install(wish(tmp_path, agents_bash=True), start=False))
    assert files_below(drop_ins) == {"10-agents-bash.conf"}
    assert sum(line.startswith("removed") for line in said) == 2


def test_a_file_of_somebody_else_is_not_written_over_and_nothing_else_is(
    of_the_machine: SystemdOfTheMachine, machine: Machine, tmp_path: Path
) -> None:
    theirs = tmp_path / "system" / "claude-daemon.service"
    theirs.parent.mkdir()
    theirs.write_text("[Service]\n")
    with pytest.raises(Conflict, match="claudectl has not written"):
        list(of_the_machine.install(wish(tmp_path), start=True))
    assert files_below(tmp_path / "system") == {"claude-daemon.service"}
    assert machine.verbs == []


@pytest.mark.parametrize("prefix", ["/root/venv", "/home/alice/venv"])
@pytest.mark.parametrize(
    ("url", "source"),
    [
        (None, "claude-daemon"),
        ("https://example.com/claude_daemon-0.1.0-py3-none-any.whl", "claude-daemon"),
        ("file:///home/alice/my%20clone", "'/home/alice/my clone'"),
    ],
)
def test_an_interpreter_below_a_home_is_refused_with_the_way_to_do_it(
    of_the_machine: SystemdOfTheMachine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefix: str,
    url: str | None,
    source: str,
) -> None:
    installed = tmp_path / "claude_daemon-0.1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: claude-daemon\nVersion: 0.1.0\n")
    if url is not None:
        (installed / "direct_url.json").write_text(json.dumps({"url": url, "dir_info": {}}))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ControlError) as refused:
        list(of_the_machine.install(wish(tmp_path, Path(prefix)), start=True))
    assert f"\n  /opt/claude-daemon/bin/pip install {source}\n" in str(refused.value)
    assert not (tmp_path / "system").exists()


def test_who_is_not_root_installs_no_system_service(
    of_the_machine: SystemdOfTheMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Denied):
        list(of_the_machine.install(wish(tmp_path), start=True))


def test_uninstall_removes_what_install_wrote_and_nothing_else(
    of_the_machine: SystemdOfTheMachine, machine: Machine, tmp_path: Path
) -> None:
    list(of_the_machine.install(wish(tmp_path, agents_bash=True), start=False))
    own = tmp_path / "system" / "claude-daemon.service.d" / "50-mine.conf"
    own.write_text("[Service]\n")
    machine.unit()
    said = list(of_the_machine.uninstall())
    assert files_below(tmp_path / "system") == {"claude-daemon.service.d/50-mine.conf"}
    assert files_below(tmp_path / "sysusers.d") == set()
    assert said[-1] == "its state stays in /var/lib/claude-daemon, its logs in /var/log/claude-daemon; so does its user"
    stop, disable = machine.verbs[-3:-1]
    of_one, of_each = (
        "claude-daemon-control.socket claude-daemon.service claude-daemon.socket",
        "claude-daemon{}.service",
    )
    assert set(stop.split()) > {"stop", *of_one.split(), of_each.format("@*")}, "its instances, too"
    assert set(disable.split()) > {"disable", *of_one.split(), of_each.format("@")}


def test_what_is_left_of_an_install_can_be_uninstalled(
    of_the_machine: SystemdOfTheMachine, machine: Machine, tmp_path: Path
) -> None:
    list(of_the_machine.install(wish(tmp_path), start=False))
    for path in (tmp_path / "system").iterdir():
        if path.name != "claude-daemon.socket":
            path.unlink()
    list(of_the_machine.uninstall())
    assert machine.verbs[-3:] == ["stop claude-daemon.socket", "disable claude-daemon.socket", "daemon-reload"]
    assert files_below(tmp_path / "system") == files_below(tmp_path / "sysusers.d") == set()
    assert next(of_the_machine.uninstall()) == "it is not installed"


@pytest.mark.parametrize("field", [{"roots": [Path("/nowhere")]}, {"credentials": {"KEY": Path("/nowhere")}}])
def test_what_would_keep_the_service_from_starting_is_refused(
    of_the_machine: SystemdOfTheMachine, machine: Machine, tmp_path: Path, field: dict[str, Any]
) -> None:
    with pytest.raises(ControlError, match="/nowhere: there is no such"):
        list(of_the_machine.install(wish(tmp_path, **field), start=True))
    assert machine.asked == []
    assert not (tmp_path / "system").exists()


def test_where_no_systemd_runs_nothing_is_written(
    of_the_machine: SystemdOfTheMachine, machine: Machine, tmp_path: Path
) -> None:
    machine.says("--property=Version", "System has not been booted with systemd", status=1)
    with pytest.raises(ControlError, match="not been booted with systemd"):
        list(of_the_machine.install(wish(tmp_path), start=True))
    assert not (tmp_path / "system").exists()


def test_install_says_when_what_runs_will_be_as_it_says(
    of_the_machine: SystemdOfTheMachine, machine: Machine, tmp_path: Path
) -> None:
    list(of_the_machine.install(wish(tmp_path), start=True))
    machine.unit(pid=42)
    started = machine.verbs.count("start claude-daemon.socket claude-daemon-control.socket claude-daemon.service")
    *_, same = of_the_machine.install(wish(tmp_path), start=True)
    *_, more = of_the_machine.install(wish(tmp_path, agents_bash=True), start=True)
    *_, less = of_the_machine.install(wish(tmp_path), start=True)
    *_, elsewhere = of_the_machine.install(replace(wish(tmp_path), listen="127.0.0.1:9000"), start=True)
    assert same == "it runs already"
    assert more == less == "it runs, as before until: claudectl service restart"
    assert elsewhere.endswith("until: claudectl service stop, then claudectl service start")
    assert (
        machine.verbs.count("start claude-daemon.socket claude-daemon-control.socket claude-daemon.service") == started
    )


def test_a_user_has_units_of_their_own_and_no_roots(machine: Machine, tmp_path: Path) -> None:
    supervisor = SystemdOfTheUser.of({"XDG_CONFIG_HOME": str(tmp_path / "config")})
    list(supervisor.install(wish(tmp_path, Path("/home/alice/venv")), start=False))
    assert "claude-daemon.service" in files_below(tmp_path / "config" / "systemd" / "user")
    assert all("--user" in line for line in machine.asked)
    with pytest.raises(ControlError, match="--root"):
        supervisor.files(wish(tmp_path, roots=[Path("/srv")]))


def test_the_home_that_a_user_has_chosen_is_the_units_too(tmp_path: Path) -> None:
    supervisor = SystemdOfTheUser.of({"XDG_CONFIG_HOME": str(tmp_path), "CLAUDE_DAEMON_HOME": "/data/claude"})
    assert supervisor.control == "/data/claude/run/ctl.sock"
    files = supervisor.files(wish(tmp_path))
    socket = files[tmp_path / "systemd" / "user" / "claude-daemon-control.socket"]
    assert b"ListenStream=/data/claude/run/ctl.sock\n" in socket


def test_whichever_is_installed_is_meant_and_ones_own_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: set[type] = set()
    monkeypatch.setattr(Systemd, "written", property(lambda self: type(self) in installed))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert isinstance(choose(None), SystemdOfTheUser)
    installed.add(SystemdOfTheMachine)
    assert isinstance(choose(None), SystemdOfTheMachine)
    installed.add(SystemdOfTheUser)
    assert isinstance(choose(None), SystemdOfTheUser)
    assert isinstance(choose("system"), SystemdOfTheMachine)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert isinstance(choose(None), SystemdOfTheMachine)
    assert isinstance(choose("user"), SystemdOfTheUser)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert isinstance(choose(None), Launchd)
    with pytest.raises(ControlError, match="no system service"):
        choose("system")


def test_what_systemctl_refuses_is_said_in_its_own_words(machine: Machine) -> None:
    machine.says("daemon-reload", "Access denied", status=4)
    with pytest.raises(ControlError, match="Access denied"):
        run("systemctl", "daemon-reload")
    with pytest.raises(ControlError, match="No such file"):
        run("/nowhere/systemctl")


# whoever started the daemon


SUPERVISED = {"pid": 42, "state": "ready", "supervisor": "systemd", "url": "http://127.0.0.1:8006"}


@pytest.fixture
def supervised(of_the_machine: SystemdOfTheMachine, machine: Machine, daemon: Daemon) -> Machine:
    machine.unit(pid=42)
    daemon.says("GET", "status", SUPERVISED)
    return machine


BY_HAND = {"pid": 7, "state": "ready", "supervisor": "detached", "url": "http://127.0.0.1:8006"}


@pytest.fixture
def by_hand(of_the_machine: SystemdOfTheMachine, machine: Machine, daemon: Daemon) -> Machine:
    machine.unit(load="not-found", active="inactive", sub="dead")
    daemon.says("GET", "status", BY_HAND)
    return machine


def test_a_supervised_daemon_is_systemds_to_stop_and_restart(supervised: Machine, invoke: Invoke) -> None:
    assert (invoke("service", "stop").exit_code, invoke("service", "restart").exit_code) == (0, 0)
    assert supervised.verbs == [
        "stop claude-daemon.socket claude-daemon-control.socket claude-daemon.service",
        "start claude-daemon.socket claude-daemon-control.socket",
        "restart claude-daemon.service",
    ]


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_failures_of_before_do_not_count_for_who_starts_it_now(
    of_the_machine: SystemdOfTheMachine, machine: Machine, daemon: Daemon, invoke: Invoke, verb: str
) -> None:
    machine.unit(active="failed", sub="failed")
    daemon.leave()
    assert invoke("service", verb).exit_code == 0
    words = [line[3] for line in machine.asked if line[0] == "systemctl"]
    assert words.index("reset-failed") < words.index("start")


def test_a_configuration_that_the_next_one_would_refuse_is_no_reason_to_end_this_one(
    supervised: Machine, daemon: Daemon, invoke: Invoke
) -> None:
    daemon.says("GET", "status", {**SUPERVISED, "config": {"changed_on_disk": True}})
    daemon.refuses("POST", "reload", 400, "bad_configuration", "nothing was changed: 1 fault in the configuration")
    refused = invoke("service", "restart")
    assert refused.exit_code == 1
    assert "bad_configuration" in refused.stderr
    assert supervised.verbs == []
    daemon.says("POST", "reload", {"changed": [], "needs_restart": []})
    assert invoke("service", "restart").exit_code == 0
    assert supervised.verbs[-1] == "restart claude-daemon.service"


@pytest.mark.parametrize("another_is_supervised", [False, True])
def test_a_daemon_that_somebody_started_by_hand_is_asked_itself(
    by_hand: Machine, daemon: Daemon, invoke: Invoke, another_is_supervised: bool
) -> None:
    def stop_and_leave(reply: Reply) -> None:
        reply.lines({"state": "drained", "saved": True})
        daemon.leave()

    daemon.on("POST", "stop", stop_and_leave)
    if another_is_supervised:
        by_hand.unit(pid=42)
    result = invoke("service", "stop", "--timeout", "20")
    assert (result.exit_code, result.stdout) == (0, "stopped\n")
    assert [request.path for request in daemon.requests if request.method == "POST"] == ["stop"]
    assert by_hand.verbs == []


def test_a_daemon_that_nobody_supervises_restarts_itself(by_hand: Machine, daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "restart", {"state": "draining", "successor": 8}, {"state": "drained", "saved": True})
    daemon.says("GET", "ready", {"status": "pass", "state": "ready", "reason": ""})
    result = invoke("service", "restart")
    assert result.exit_code == 0, result.stderr
    assert "restarted: pid 7, started in the background, at http://127.0.0.1:8006" in result.stdout
    assert by_hand.verbs == []


@pytest.mark.parametrize("verb", ["stop", "restart", "logs"])
def test_a_daemon_of_another_unit_is_left_to_it(supervised: Machine, daemon: Daemon, invoke: Invoke, verb: str) -> None:
    daemon.says("GET", "status", {"pid": 43, "state": "ready", "supervisor": "systemd", "url": "http://127.0.0.1:8007"})
    result = invoke("service", verb)
    assert result.exit_code == 7
    assert "systemctl status 43" in result.stderr
    assert supervised.verbs == []


def hangs(reply: Reply) -> None:
    """Answers nothing for as long as anybody waits."""
    reply.wait_for_hangup()


def denies(reply: Reply) -> None:
    reply.problem(403, "forbidden", "this user may not control the daemon")


@pytest.mark.parametrize("reply", [hangs, denies])
def test_a_supervised_daemon_need_not_answer_to_be_seen_and_stopped(
    supervised: Machine, daemon: Daemon, invoke: Invoke, reply: Callable[[Reply], None]
) -> None:
    daemon.on("GET", "status", reply)
    status = invoke("service", "status", "--timeout", "0.2")
    assert status.exit_code == 0
    assert "pid 42" in status.stdout
    assert "daemon: gives you no answer" in status.stdout
    start = invoke("service", "start", "--timeout", "0.2")
    assert start.exit_code == 7
    assert "gives you no answer" in start.stderr
    assert invoke("service", "stop", "--timeout", "0.2").stdout == "stopped\n"
    assert supervised.verbs == ["stop claude-daemon.socket claude-daemon-control.socket claude-daemon.service"]


@pytest.mark.parametrize(("reply", "code"), [(hangs, 124), (denies, 5)])
def test_a_daemon_that_nobody_supervises_must_answer(
    by_hand: Machine, daemon: Daemon, invoke: Invoke, reply: Callable[[Reply], None], code: int
) -> None:
    daemon.on("GET", "status", reply)
    assert invoke("service", "stop", "--timeout", "0.2").exit_code == code
    assert by_hand.verbs == []


def test_the_log_of_a_daemon_that_nobody_supervises_is_its_own(
    by_hand: Machine, daemon: Daemon, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[str]] = []
    monkeypatch.setattr(os, "execvp", lambda file, args: shown.append(args))
    daemon.says("GET", "status", {**BY_HAND, "log": {"file": None}})
    missing = invoke("service", "logs")
    assert missing.exit_code == 1
    assert "log.file" in missing.stderr
    file = tmp_path / "elsewhere.log"
    daemon.says("GET", "status", {**BY_HAND, "log": {"file": str(file)}})
    invoke("service", "logs", "-f", "-n", "7")
    assert shown == [["tail", "-n", "7", "-F", str(file)]]


@pytest.mark.parametrize("who", ["supervised", "by_hand"])
def test_nothing_is_started_beside_a_daemon_that_runs(request: pytest.FixtureRequest, invoke: Invoke, who: str) -> None:
    machine: Machine = request.getfixturevalue(who)
    result = invoke("service", "start")
    assert result.exit_code == 7
    assert "a daemon runs already: pid" in result.stderr
    assert machine.verbs == []


def waits(machine: Machine) -> None:
    machine.unit(active="inactive", sub="dead")
    machine.says("show claude-daemon.socket", "active\n\nactive\n")


def test_beside_sockets_that_wait_another_daemon_is_found(by_hand: Machine, invoke: Invoke) -> None:
    waits(by_hand)
    result = invoke("service", "status")
    assert result.exit_code == 0
    assert "its sockets wait" in result.stdout
    assert "daemon: ready, pid 7, started in the background" in result.stdout


def test_the_machines_daemon_is_no_matter_of_a_user_who_may_not_ask_it(
    machine: Machine, daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.unit(active="inactive", sub="dead")
    daemon.says("GET", "status", {"pid": 9, "supervisor": "systemd"})
    of_the_user = SystemdOfTheUser(tmp_path, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CLAUDE_DAEMON_SOCKET", "CLAUDE_DAEMON_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    for module in (answering, sockets):
        monkeypatch.setattr(module, "SYSTEM", str(daemon.path))
    assert answering.look(Options(), of_the_user)[1] == {"pid": 9, "supervisor": "systemd"}
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert answering.look(Options(), of_the_user)[1] is None


def test_who_waits_on_its_sockets_is_not_woken_by_being_asked_how_it_is(
    of_the_machine: SystemdOfTheMachine, machine: Machine, daemon: Daemon, invoke: Invoke
) -> None:
    waits(machine)
    of_the_machine.control = str(daemon.path)
    result = invoke("service", "status")
    assert result.exit_code == 4
    assert "its sockets wait, and start it for whoever connects" in result.stdout
    assert daemon.requests == []
    assert invoke("service", "stop").stdout == "stopped\n"
    assert daemon.requests == []


def test_status_tells_what_the_supervisor_and_the_daemon_say(by_hand: Machine, invoke: Invoke) -> None:
    result = invoke("service", "status")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "systemd: not installed; inactive (dead), enabled",
        "daemon: ready, pid 7, started in the background, at http://127.0.0.1:8006",
    ]
    told = json.loads(invoke("service", "status", "--json").stdout)
    assert (told["supervisor"], told["installed"], told["daemon"]["pid"]) == ("systemd", False, 7)


def test_where_no_systemd_runs_a_daemon_is_found_all_the_same(by_hand: Machine, invoke: Invoke) -> None:
    by_hand.says("show claude-daemon.service", "System has not been booted with systemd", status=1)
    result = invoke("service", "status")
    assert result.exit_code == 0
    assert "systemd does not answer here" in result.stdout


def test_without_a_daemon_stop_is_done_and_restart_says_what_to_do(
    of_the_machine: SystemdOfTheMachine, machine: Machine, daemon: Daemon, invoke: Invoke
) -> None:
    machine.unit(load="not-found", active="inactive", sub="dead")
    daemon.leave()
    assert invoke("service", "stop").stdout == "it is not running\n"
    assert invoke("service", "restart").exit_code == 4
    assert invoke("service", "status").exit_code == 4
    assert "claudectl service install" in invoke("service", "start").stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--credential", "KEY=relative"], "absolute path"),
        (["--credential", "a b=/x"], "NAME=FILE"),
        (["--root", "work"], "must be absolute"),
        (["--root", "/srv/a b"], "a unit cannot name"),
        (["--listen", "8006"], "ADDRESS:PORT"),
        (["--listen", "localhost:99999"], "ADDRESS:PORT"),
    ],
)
def test_a_wish_that_cannot_be_granted_is_a_usage_error(
    of_the_machine: SystemdOfTheMachine, machine: Machine, invoke: Invoke, args: list[str], said: str
) -> None:
    result = invoke("service", "print", *args)
    assert result.exit_code == 2
    assert said in result.stderr
    assert machine.asked == []


def test_print_shows_every_file_and_writes_none(
    of_the_machine: SystemdOfTheMachine, tmp_path: Path, invoke: Invoke
) -> None:
    result = invoke("service", "print", "--listen", "127.0.0.1:9000", "--root", "/srv/work")
    assert result.exit_code == 0
    assert result.stdout.count(MARKER) == len(of_the_machine.files(wish(tmp_path, roots=[Path("/srv/work")])))
    assert "ListenStream=127.0.0.1:9000" in result.stdout
    assert not (tmp_path / "system").exists()


@pytest.mark.parametrize(
    ("supervisor", "expected"),
    [
        (SystemdOfTheMachine(), ["journalctl", "--unit=claude-daemon.service", "--lines=5", "--follow"]),
        (SystemdOfTheUser.of({}), ["journalctl", "--user-unit=claude-daemon.service", "--lines=5", "--follow"]),
        (Launchd(Path("/a"), Path("/h"), 501), ["tail", "-n", "5", "-F", "/h/log/launchd.log"]),
    ],
)
def test_logs_are_where_the_supervisor_keeps_them(supervisor: Supervisor, expected: list[str]) -> None:
    assert supervisor.logs(follow=True, lines=5) == expected


# launchd


@pytest.fixture
def launchd(machine: Machine, tmp_path: Path) -> Launchd:
    return Launchd(tmp_path / "LaunchAgents", tmp_path / "home", 501)


def test_an_agent_is_written_loaded_and_taken_away_again(launchd: Launchd, machine: Machine, tmp_path: Path) -> None:
    machine.says("print gui/501", "Could not find service", status=113)
    list(launchd.install(wish(tmp_path), start=True))
    file = tmp_path / "LaunchAgents" / f"{LABEL}.plist"
    assert machine.verbs == [f"bootstrap gui/501 {file}"]
    machine.says("print gui/501", "\tstate = running\n\tpid = 77\n")
    assert launchd.unit() == Unit(installed=True, state="running", pid=77)
    launchd.restart()
    said = list(launchd.uninstall())
    assert machine.verbs[1:] == [f"kickstart -k gui/501/{LABEL}", f"bootout gui/501/{LABEL}"]
    assert not file.exists()
    assert said[-1] == f"its state stays in {tmp_path / 'home'}"


def test_an_agent_of_somebody_else_stays(launchd: Launchd, machine: Machine, tmp_path: Path) -> None:
    theirs = tmp_path / "LaunchAgents" / f"{LABEL}.plist"
    theirs.parent.mkdir()
    theirs.write_text(f"<?xml?>\n<plist><dict><key>Label</key><string>{LABEL}</string></dict></plist>\n")
    with pytest.raises(Conflict):
        list(launchd.install(wish(tmp_path), start=False))
    assert list(launchd.uninstall()) == ["it is not installed"]
    assert theirs.exists()
    assert machine.verbs == []


def test_an_agent_that_is_loaded_is_as_it_was_until_it_is_loaded_anew(
    launchd: Launchd, machine: Machine, tmp_path: Path
) -> None:
    machine.says("print gui/501", "\tstate = running\n\tpid = 77\n")
    *_, first = launchd.install(wish(tmp_path), start=True)
    *_, second = launchd.install(wish(tmp_path), start=True)
    assert first.endswith("until: claudectl service stop, then claudectl service start")
    assert second == "it runs already"
    assert machine.verbs == []


# as JSON

AS_JSON: dict[str, tuple[list[str], Any]] = {
    "install": ([], {"done"}),
    "print": ([], {"files"}),
    "uninstall": ([], {"done"}),
    "start": ([], {"state"}),
    "stop": ([], {"state"}),
    "restart": ([], {"state"}),
    "status": ([], {"supervisor", "installed", "state", "pid", "waits", "daemon"}),
    "logs": (["-n", "3"], None),
}
"""What each is told, and the keys of what it says; logs become the journal's own program."""


@pytest.mark.parametrize("verb", list(service.command.commands))
def test_with_json_it_prints_one_document(
    of_the_machine: SystemdOfTheMachine,
    machine: Machine,
    daemon: Daemon,
    invoke: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    shown: list[list[str]] = []
    monkeypatch.setattr(os, "execvp", lambda file, args: shown.append(args))
    monkeypatch.setattr(service, "_wish", lambda **wishes: wish(tmp_path))
    daemon.leave()
    machine.unit(load="loaded", active="inactive", sub="dead")
    args, keys = AS_JSON[verb]
    result = invoke("service", verb, *args, "--json")
    assert result.exit_code == (4 if verb == "status" else 0), result.stderr
    if keys is None:
        assert shown == [["journalctl", "--unit=claude-daemon.service", "--lines=3", "--output=json"]]
    else:
        assert set(json.loads(result.stdout)) == keys


def test_a_restart_without_a_supervisor_is_told_line_by_line(by_hand: Machine, daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "restart", {"state": "draining", "successor": 8}, {"state": "drained", "saved": True})
    daemon.says("GET", "ready", {"status": "pass", "state": "ready", "reason": ""})
    lines = invoke("service", "restart", "--json").stdout.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["draining", "drained", "restarted"]
