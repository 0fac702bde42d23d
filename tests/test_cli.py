"""claude-daemon as a command: what it says, and its exit status."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from claude_daemon.supervise.pidfile import running
from tests.support import BIN

KEY = "sk-ant-api03-" + "x" * 40
TIMEOUT_S = 30


def claude_daemon(
    home: Path, *args: str, under: Sequence[str] = (), **environ: str
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    kept = {name: os.environ[name] for name in os.environ if name.startswith("COVERAGE")}
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8", **kept, **environ}
    command = [*under, str(BIN / "claude-daemon"), *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)


def config(home: Path, text: str) -> Path:
    path = home / ".claude-daemon" / "config.toml"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["frobnicate"], "No such command"),
        (["run", "--nonsense"], "No such option"),
        (["run", "--port", "many"], "not a valid integer"),
        (["run", "--profile", "test"], "is not one of"),
        (["run", "extra"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_64(tmp_path: Path, args: list[str], said: str) -> None:
    result = claude_daemon(tmp_path, *args)
    assert result.returncode == 64
    assert said in result.stderr
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["run", "-h"]])
def test_help_and_version_are_0_and_touch_nothing(tmp_path: Path, args: list[str]) -> None:
    result = claude_daemon(tmp_path, *args)
    assert result.returncode == 0
    assert "claude-daemon" in result.stdout
    assert names_in(tmp_path) == []


def test_check_config_tells_each_value_with_its_origin_and_masks_secrets(tmp_path: Path) -> None:
    path = config(tmp_path, '[http]\nport = 9000\n\n[webhooks]\nsecret = "a long secret of ours"\n')
    result = claude_daemon(tmp_path, "check-config", ANTHROPIC_API_KEY=KEY, CLAUDE_DAEMON_ENGINE__WORKERS="7")
    assert result.returncode == 0
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in result.stdout.splitlines()}
    assert rows["http.port"].startswith("9000 ") and str(path) in rows["http.port"]
    assert rows["engine.workers"].startswith("7 ") and "CLAUDE_DAEMON_ENGINE__WORKERS" in rows["engine.workers"]
    assert rows["http.host"].startswith('"127.0.0.1"') and "default" in rows["http.host"]
    assert rows["engine.upstream"].startswith('"auto"') and "dev" in rows["engine.upstream"]
    assert rows["webhooks.secret"].startswith("***")
    assert rows["credential"].startswith("api_key ***") and "ANTHROPIC_API_KEY" in rows["credential"]
    assert KEY not in result.stdout and "a long secret of ours" not in result.stdout


@pytest.mark.parametrize("command", ["run", "check-config"])
def test_a_bad_configuration_is_78_with_every_fault_and_starts_nothing(tmp_path: Path, command: str) -> None:
    config(tmp_path, "[http]\nport = 70000\nprot = 1\n\n[engine]\nworkers = 0\n")
    result = claude_daemon(tmp_path, command, CLAUDE_DAEMON_QUEUE__MAX_ATTEMPTS="none", CLAUDE_DAEMON_HTPP__PORT="1")
    assert result.returncode == 78
    said = result.stderr
    for fault in ("http.port", "http.prot", "engine.workers", "MAX_ATTEMPTS", "CLAUDE_DAEMON_HTPP__PORT"):
        assert fault in said
    assert all(line.startswith("claude-daemon: ") for line in said.splitlines())
    assert "Traceback" not in said
    assert names_in(tmp_path / ".claude-daemon") == ["config.toml"]


def test_check_config_names_every_fault_that_no_form_of_a_setting_shows(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    config(
        tmp_path,
        f"""
[http]
tls_cert = "{tmp_path}/empty.pem"
tls_key = "{tmp_path}/none.pem"
[webhooks]
secret = "whsec_!"
[roles.full]
tools = ["Read"]
[roles.mine]
scopes = ["wings"]
""",
    )
    result = claude_daemon(tmp_path, "check-config")
    assert (result.returncode, result.stdout) == (78, "")
    faults = [line.removeprefix("claude-daemon: ").split(":")[0] for line in result.stderr.splitlines()]
    assert faults == [
        "roles.full",
        "roles.mine.scopes",
        "webhooks.secret",
        f"http.tls_cert {tmp_path}/empty.pem, http.tls_key {tmp_path}/none.pem",
    ]


@pytest.mark.parametrize(
    ("role", "told"),
    [
        ('routes = ["/v1/task"]', "roles.mine.routes: no route is named '/v1/task'"),
        ('lanes = ["fast"]', "roles.mine.lanes: no lane is named 'fast'"),
        ("models = []", "roles.mine.models: must name at least one; without such a rule it is left out"),
        ('models = ["-x"]', "roles.mine.models"),
        ('roots = ["/srv"]', "roles.mine.roots: /srv is none of [[roots]]"),
        ('roots = ["srv"]', "roles.mine.roots"),
        ('scopes = ["mcp"]\nmcp = ["x"]', "roles.mine.mcp: there is no [mcp.x]"),
        ("max_turns = 0", "roles.mine.max_turns"),
        ("max_turns = 1001", "roles.mine.max_turns"),
        ("max_cost_usd = 0", "roles.mine.max_cost_usd"),
        ("max_timeout_s = inf", "roles.mine.max_timeout_s"),
        ("max_priority = -1", "roles.mine.max_priority"),
        ("concurrent = 0", "roles.mine.concurrent"),
    ],
)
def test_a_role_that_cannot_be_is_told_by_its_dotted_key(tmp_path: Path, role: str, told: str) -> None:
    config(tmp_path, f"[roles.mine]\n{role}\n")
    result = claude_daemon(tmp_path, "check-config")
    assert result.returncode == 78
    assert told in result.stderr and "Traceback" not in result.stderr


def test_launchd_would_start_a_bad_configuration_for_ever_so_there_it_is_0(tmp_path: Path) -> None:
    config(tmp_path, "[http]\nprot = 1\n")
    launchd = {"CLAUDE_DAEMON_SUPERVISOR": "launchd"}
    result = claude_daemon(tmp_path, "run", **launchd)
    assert result.returncode == 0
    assert "http.prot" in result.stderr
    assert claude_daemon(tmp_path, "check-config", **launchd).returncode == 78


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"LISTEN_FDS": "1"}, "LISTEN_FDNAMES names 0"),
        ({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "https"}, "'https'"),
        ({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}, "descriptor 3 (http) is not"),
        ({"LISTEN_FDS": "many", "LISTEN_FDNAMES": "http"}, "LISTEN_FDS"),
    ],
)
def test_sockets_that_cannot_be_used_are_78(tmp_path: Path, environ: dict[str, str], said: str) -> None:
    result = claude_daemon(tmp_path, "run", "--offline", "--takeover", **environ)
    assert result.returncode == 78
    assert said in result.stderr


def test_a_file_that_is_named_and_missing_is_78(tmp_path: Path) -> None:
    result = claude_daemon(tmp_path, "run", "--config", str(tmp_path / "none.toml"))
    assert result.returncode == 78
    assert "none.toml" in result.stderr


def test_a_socket_path_of_108_bytes_is_78(tmp_path: Path) -> None:
    path = "/tmp/" + "s" * 103
    result = claude_daemon(tmp_path, "run", "--offline", CLAUDE_DAEMON_SOCKET=path)
    assert result.returncode == 78
    assert "107 bytes" in result.stderr


def test_a_port_that_is_taken_is_73_and_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = claude_daemon(tmp_path, "run", "--offline", "--port", str(port))
    assert result.returncode == 73
    assert f"(127.0.0.1:{port})" in result.stderr
    assert names_in(tmp_path / ".claude-daemon" / "run") == []


def test_something_in_the_way_of_the_control_socket_is_73_and_stays(tmp_path: Path) -> None:
    way = tmp_path / ".claude-daemon" / "run" / "ctl.sock"
    way.parent.mkdir(parents=True, mode=0o700)
    way.parent.parent.chmod(0o700)
    way.write_text("precious")
    result = claude_daemon(tmp_path, "run", "--offline", "--port", "0")
    assert result.returncode == 73
    assert "not a socket" in result.stderr
    assert way.read_text() == "precious"


def test_a_file_in_the_place_of_a_directory_is_73(tmp_path: Path) -> None:
    home = tmp_path / ".claude-daemon"
    home.mkdir(mode=0o700)
    (home / "engine").touch()
    result = claude_daemon(tmp_path, "run", "--offline")
    assert result.returncode == 73
    assert f"File exists: '{home / 'engine'}'" in result.stderr


def test_a_home_that_others_may_write_to_is_77(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o777)
    result = claude_daemon(tmp_path, "run", "--offline", CLAUDE_DAEMON_HOME=str(home))
    assert result.returncode == 77
    assert "others may write to it" in result.stderr
    assert names_in(home) == []


def test_a_home_that_cannot_be_made_is_77(tmp_path: Path) -> None:
    (tmp_path / "sealed").mkdir(mode=0o500)
    home = tmp_path / "sealed" / "home"
    # else root may write everywhere
    under = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
    result = claude_daemon(tmp_path, "run", "--offline", under=under, CLAUDE_DAEMON_HOME=str(home))
    assert result.returncode == 77


def test_a_local_key_that_is_none_is_78_and_says_what_to_do(tmp_path: Path) -> None:
    home = tmp_path / ".claude-daemon"
    home.mkdir(mode=0o700)
    (home / "local.key").touch(mode=0o600)
    result = claude_daemon(tmp_path, "run", "--offline", "--port", "0")
    assert result.returncode == 78
    assert "local.key is empty: delete it" in result.stderr
    assert names_in(home / "run") == []


def test_a_certificate_that_cannot_be_used_is_78_and_nothing_is_served_in_plain(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("not a certificate")
    pem = str(tmp_path / "cert.pem")
    environ = {"CLAUDE_DAEMON_HTTP__TLS_CERT": pem, "CLAUDE_DAEMON_HTTP__TLS_KEY": pem}
    result = claude_daemon(tmp_path, "run", "--offline", "--port", "0", **environ)
    assert result.returncode == 78
    assert f"http.tls_cert {pem}" in result.stderr
    assert running(tmp_path / ".claude-daemon" / "run" / "daemon.pid") is None
