"""``claudectl config`` and ``claudectl completion``."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from tests.ctl.conftest import Ctl, Daemon, Invoke


def row(key: str, text: str, origin: str = "default", **more: object) -> dict[str, object]:
    return {
        "key": key,
        "value": json.loads(text) if text not in ("none", "***") else None,
        "text": text,
        "default": text,
        "origin": origin,
        "layer": origin.partition(" ")[0],
        "changed": False,
        "in_force": None,
        **more,
    }


CONFIG = {
    "profile": "prod",
    "file": "/h/config.toml",
    "values": [
        row("http.host", '"127.0.0.1"'),
        row("http.port", "9000", "file /h/config.toml", default="8006", changed=True, in_force="8006"),
        row("httpx.y", "1"),
        row("roots[0].path", '"/srv"', "file /h/config.toml", changed=True),
        row("webhooks.secret", "***", "environment CLAUDE_DAEMON_WEBHOOKS__SECRET", changed=True),
    ],
}


@pytest.fixture
def configured(daemon: Daemon) -> Daemon:
    daemon.says("GET", "config", CONFIG)
    return daemon


def test_every_value_is_told_with_its_origin_and_what_waits(configured: Daemon, invoke: Invoke) -> None:
    assert invoke("config").stdout == (
        "profile prod · /h/config.toml\n"
        "KEY              VALUE        ORIGIN\n"
        'http.host        "127.0.0.1"  default\n'
        "http.port        9000         file /h/config.toml                         after a restart; until then 8006\n"
        "httpx.y          1            default\n"
        'roots[0].path    "/srv"       file /h/config.toml\n'
        "webhooks.secret  ***          environment CLAUDE_DAEMON_WEBHOOKS__SECRET\n"
    )


def test_of_one_setting_the_value_alone_is_printed(configured: Daemon, invoke: Invoke) -> None:
    assert invoke("config", "http.port").stdout == "9000\n"
    assert json.loads(invoke("config", "http.port", "--json").stdout) == CONFIG["values"][1]


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        (["http"], ["http.host", "http.port"]),
        (["roots"], ["roots[0].path"]),
        (["roots[0]"], ["roots[0].path"]),
        (["--changed"], ["http.port", "roots[0].path", "webhooks.secret"]),
        (["--changed", "http"], ["http.port"]),
        (["--changed", "http.port"], ["http.port"]),
        (["--changed", "http.host"], []),
    ],
)
def test_a_section_or_what_has_changed(configured: Daemon, invoke: Invoke, args: list[str], keys: list[str]) -> None:
    document = json.loads(invoke("config", *args, "--json").stdout)
    assert [value["key"] for value in document["values"]] == keys
    assert document["profile"] == "prod"
    shown = invoke("config", *args).stdout.splitlines()
    assert shown[0] == "profile prod · /h/config.toml"
    assert [line.split()[0] for line in shown[2:]] == keys or shown[1:] == ["nothing differs"]


@pytest.mark.parametrize(
    ("key", "hint"),
    [("http.prot", "; did you mean http.port?"), ("htp", "; did you mean http?"), ("zzzzzz\x1b[2J", "")],
)
def test_what_there_is_not_is_told_with_the_nearest(configured: Daemon, invoke: Invoke, key: str, hint: str) -> None:
    result = invoke("config", key)
    assert result.exit_code == 1
    assert result.stderr == f"error: there is no setting {key.partition(chr(27))[0]}{hint}\n"


def test_where_there_is_no_file_it_says_so(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "config", {"profile": "dev", "file": None, "values": [row("http.port", "8006")]})
    assert invoke("config").stdout.startswith("profile dev · no file\n")


# completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_asks_claudectl_itself(invoke: Invoke, shell: str) -> None:
    result = invoke("completion", shell)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"_CLAUDECTL_COMPLETE={shell}_complete" in result.stdout
    assert json.loads(invoke("completion", shell, "--json").stdout) == {
        "shell": shell,
        "script": result.stdout.rstrip("\n"),
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_one_that_its_shell_can_read(invoke: Invoke, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here: apt-get install {shell}")
    script = invoke("completion", shell).stdout
    checked = subprocess.run([program, "-n"], input=script, capture_output=True, text=True, check=False, timeout=20)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("claudectl wor", "plain,workers"),
        ("claudectl workers rec", "plain,recycle"),
        ("claudectl completion z", "plain,zsh"),
        ("claudectl tasks list --state que", "plain,queued"),
    ],
)
def test_what_is_asked_is_answered_without_a_daemon(ctl: Ctl, typed: str, expected: str) -> None:
    words = typed.split()
    asked = {"_CLAUDECTL_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    ended = ctl(env=asked)
    assert (ended.code, ended.err, ended.out.splitlines()) == (0, "", [expected])


def test_another_shell_is_usage(invoke: Invoke) -> None:
    assert invoke("completion", "tcsh").exit_code == 2
