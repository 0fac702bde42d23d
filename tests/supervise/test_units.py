"""The units as systemd itself reads them, and the agent as launchd would."""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.config.models import Drain
from claude_daemon.supervise.units import (
    LABEL,
    MARK,
    MARKER,
    Site,
    agents_drop_in,
    credentials_drop_in,
    launch_agent,
    roots_drop_in,
    system_units,
    sysusers,
    template_units,
    user_units,
)

ROOT = Path(__file__).parents[2]
HERE = Site(daemon=Path("/bin/true"), claudectl=Path("/bin/true"), user="daemon")
SHIPPED = Site(daemon=Path("/opt/claude-daemon/bin/claude-daemon"), claudectl=Path("/opt/claude-daemon/bin/claudectl"))
Units = Callable[[Site], dict[str, str]]
analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")


def written(directory: Path, units: Mapping[str, str], instance: str = "") -> list[Path]:
    """The units as files; those of a template as one of its instances."""
    paths = [directory / name.replace("@.", f"@{instance}.") for name in units]
    for path, text in zip(paths, units.values(), strict=True):
        path.write_text(text)
    return paths


def values(text: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


@analyze
@pytest.mark.parametrize(
    ("units", "instance", "manager"),
    [(system_units, "", "--system"), (template_units, "8007", "--system"), (user_units, "", "--user")],
)
def test_systemd_finds_nothing_to_say_about_the_units(
    tmp_path: Path, units: Units, instance: str, manager: str
) -> None:
    paths = written(tmp_path, units(HERE), instance)
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    command = ["systemd-analyze", manager, "verify", *map(str, paths)]
    found = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


@analyze
def test_systemd_finds_nothing_to_say_about_the_drop_ins(tmp_path: Path) -> None:
    service = written(tmp_path, system_units(HERE))[0]
    drop_ins = tmp_path / "claude-daemon.service.d"
    drop_ins.mkdir()
    texts = [agents_drop_in(), roots_drop_in([Path("/srv")]), credentials_drop_in({"KEY": Path("/etc/keys/key")})]
    for number, text in enumerate(texts):
        (drop_ins / f"{number}.conf").write_text(text)
    command = ["systemd-analyze", "--system", "verify", str(service)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""
    (drop_ins / "3.conf").write_text("[Service]\nNonsense=yes\n")
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "'Nonsense'" in found.stderr, "it reads them"


@analyze
@pytest.mark.parametrize(
    ("drop_ins", "worst"),
    [([], 1.5), ([roots_drop_in([Path("/srv")])], 1.5), ([agents_drop_in(), roots_drop_in([Path("/srv")])], 2.6)],
)
def test_the_exposure_that_systemd_counts_stays_small(tmp_path: Path, drop_ins: Sequence[str], worst: float) -> None:
    # offline it reads no drop-in; what comes later in a file counts as well
    text = "\n".join([system_units(HERE)["claude-daemon.service"], *drop_ins])
    path = tmp_path / "claude-daemon.service"
    path.write_text(text)
    command = ["systemd-analyze", "security", "--offline=true", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    level = re.search(r"exposure level for claude-daemon.service: ([\d.]+)", found.stdout)
    assert level is not None, found.stderr
    assert float(level[1]) <= worst


@pytest.mark.parametrize("units", [system_units, template_units, user_units])
def test_no_hole_is_left_and_every_file_is_marked(units: Units) -> None:
    for text in units(SHIPPED).values():
        assert text.startswith(f"{MARKER}\n")
        assert re.findall(r"@[a-z_]+@", text) == []
        assert "\n\n\n" not in text


@pytest.mark.parametrize("units", [system_units, template_units, user_units])
def test_a_stop_may_take_as_long_as_a_drain_does_and_no_word_kills_node(units: Units) -> None:
    (text,) = [text for name, text in units(SHIPPED).items() if name.endswith(".service")]
    drain = Drain()
    assert int(values(text, "TimeoutStopSec")[0]) > drain.lame_duck_s + drain.deadline_s + drain.kill_grace_s
    assert values(text, "MemoryDenyWriteExecute") == values(text, "ProcSubset") == []
    assert "~@resources" not in values(text, "SystemCallFilter")
    assert values(text, "RestartPreventExitStatus") == ["64 69 73 77 78"]
    assert values(text, "Type") == ["notify"]


def test_a_daemon_of_a_user_has_its_home_where_it_has_it_without_systemd() -> None:
    units = user_units(SHIPPED)
    service = units["claude-daemon.service"]
    assert not any("Directory" in line.partition("=")[0] for line in service.splitlines())
    assert values(service, "User") == values(units["claude-daemon-control.socket"], "SocketUser") == []
    assert values(units["claude-daemon-control.socket"], "ListenStream") == ["%h/.claude-daemon/run/ctl.sock"]
    assert values(service, "WantedBy") == ["default.target"]


def test_a_daemon_whose_home_is_elsewhere_is_told_so() -> None:
    units = user_units(SHIPPED, Path("/data/claude"))
    assert "CLAUDE_DAEMON_HOME=/data/claude" in values(units["claude-daemon.service"], "Environment")
    assert values(units["claude-daemon-control.socket"], "ListenStream") == ["/data/claude/run/ctl.sock"]
    assert "--socket /data/claude/run/ctl.sock" in values(units["claude-daemon.service"], "ExecReload")[0]


def test_the_drop_in_for_agents_lets_bubblewrap_build_what_it_builds() -> None:
    """Each of these was seen to be needed, under a systemd 252: without one, bwrap fails or hangs."""
    drop_in = agents_drop_in()
    assert set(values(drop_in, "RestrictNamespaces")[0].split()) == {"ipc", "mnt", "pid", "user"}
    assert values(drop_in, "RestrictAddressFamilies") == []
    assert set(values(drop_in, "SystemCallFilter")[0].split()) == {"mount", "umount2", "pivot_root", "capset"}
    for covers_some_of_proc in ("ProtectKernelTunables", "ProtectKernelLogs"):
        assert values(drop_in, covers_some_of_proc) == ["no"]


def test_the_drop_in_for_agents_delegates_the_services_own_cgroup_and_uncovers_no_other() -> None:
    for drop_in, written in ((agents_drop_in(), ["-/sys/fs/cgroup/system.slice/%n"]), (agents_drop_in(user=True), [])):
        assert values(drop_in, "Delegate") == ["memory pids"]
        assert values(drop_in, "ReadWritePaths") == written, "a user's manager can make no mounts beside bubblewrap's"
        assert values(drop_in, "ProtectControlGroups") == []
    service = system_units(SHIPPED)["claude-daemon.service"]
    assert (values(service, "ProtectControlGroups"), values(service, "Delegate")) == (["yes"], [])


def test_an_instance_listens_on_the_port_that_is_its_name() -> None:
    units = template_units(SHIPPED)
    assert values(units["claude-daemon@.socket"], "ListenStream") == ["127.0.0.1:%i"]
    assert values(units["claude-daemon@.service"], "StateDirectory") == ["claude-daemon-%i"]
    assert values(units["claude-daemon-control@.socket"], "ListenStream") == ["/run/claude-daemon-%i/ctl.sock"]


def test_drop_ins_name_roots_and_credentials_and_refuse_what_a_unit_cannot_name() -> None:
    roots = roots_drop_in([Path("/home/alice/src")])
    assert values(roots, "BindPaths") == values(roots, "ReadWritePaths") == ["/home/alice/src"]
    assert values(roots, "ProtectHome") == ["tmpfs"], "below a home that is inaccessible nothing can be bound"
    credentials = credentials_drop_in({"ANTHROPIC_API_KEY": Path("/etc/claude-daemon/key")})
    assert values(credentials, "LoadCredential") == ["ANTHROPIC_API_KEY:/etc/claude-daemon/key"]
    for bad in ("/home/a b", "/home/%h", "/x\ny", "/$HOME", '/"'):
        with pytest.raises(ValueError, match="a unit cannot name"):
            roots_drop_in([Path(bad)])
        with pytest.raises(ValueError, match="a unit cannot name"):
            system_units(Site(daemon=Path(bad), claudectl=Path("/bin/true")))
        with pytest.raises(ValueError, match="a unit cannot name"):
            system_units(Site(daemon=Path("/bin/true"), claudectl=Path("/bin/true"), listen=f"{bad}:80"))
        with pytest.raises(ValueError, match="a unit cannot name"):
            user_units(SHIPPED, Path(bad))


def test_what_etc_holds_is_what_is_rendered() -> None:
    etc = {path.relative_to(ROOT / "etc" / "systemd"): path.read_text() for path in _files(ROOT / "etc" / "systemd")}
    assert etc == {
        **{Path("system", name): text for name, text in {**system_units(SHIPPED), **template_units(SHIPPED)}.items()},
        **{Path("user", name): text for name, text in user_units(SHIPPED).items()},
        Path("system/claude-daemon.service.d/10-agents-bash.conf"): agents_drop_in(),
        Path("sysusers.d/claude-daemon.conf"): sysusers(SHIPPED),
    }
    agent = launch_agent(Path("/opt/claude-daemon/bin/claude-daemon"), Path("/Users/alice/.claude-daemon"))
    assert (ROOT / "etc" / "launchd" / f"{LABEL}.plist").read_bytes() == agent


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


# launchd.plist(5): the keys that we use, and what they hold
KEYS: Mapping[str, type | Mapping[str, type]] = {
    "Label": str,
    "ProgramArguments": list,
    "RunAtLoad": bool,
    "KeepAlive": {"SuccessfulExit": bool},
    "ThrottleInterval": int,
    "ExitTimeOut": int,
    "ProcessType": str,
    "AbandonProcessGroup": bool,
    "Umask": int,
    "SoftResourceLimits": {"NumberOfFiles": int},
    "EnvironmentVariables": dict,
    "StandardOutPath": str,
    "StandardErrorPath": str,
}


def test_the_launch_agent_survives_a_round_trip_and_has_known_keys_of_the_right_types() -> None:
    written_agent = launch_agent(Path("/opt/bin/claude-daemon"), Path("/Users/alice/.claude-daemon"))
    agent: dict[str, Any] = plistlib.loads(written_agent)
    assert written_agent.splitlines()[1] == MARK.encode()
    assert plistlib.loads(plistlib.dumps(agent)) == agent
    assert agent.keys() == KEYS.keys()
    for key, kind in KEYS.items():
        if isinstance(kind, type):
            assert type(agent[key]) is kind, key
        else:
            assert {name: type(value) for name, value in agent[key].items()} == kind, key
    assert agent["ProgramArguments"] == ["/opt/bin/claude-daemon", "run"]
    assert all(type(value) is str for value in agent["EnvironmentVariables"].values())
    drain = Drain()
    assert agent["ExitTimeOut"] > drain.lame_duck_s + drain.deadline_s + drain.kill_grace_s
    assert agent["EnvironmentVariables"]["CLAUDE_DAEMON_SUPERVISOR"] == "launchd"
