"""``claudectl debug-bundle``: what is in it, what is not, and that nobody else may read it."""

from __future__ import annotations

import json
import stat
import tarfile
from pathlib import Path

import pytest

from claude_daemon import secret
from claude_daemon.telemetry import masking
from claudectl import bundle, diagnosis, redaction
from claudectl.redaction import Redactor, known_secrets
from tests.ctl.conftest import Ctl, Daemon, Invoke
from tests.ctl.test_doctor import STATUS, Unsupervised

KEY = "cd_" + "k" * 43
PLANTED = {
    "environment": "planted-in-the-environment-1",
    "audit key": "ab" * 32,
    "webhooks": "planted-for-webhooks-2",
    "header": "planted-in-a-header-3",
    "url": "planted-in-a-url-4",
    "file": "planted-in-a-file-5",
    "key": KEY,
    "upstream": "sk-ant-planted-6",
}


def parts(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        found = {}
        for member in archive:
            assert (member.mode, member.uname, member.isfile()) == (0o600, "", True)
            opened = archive.extractfile(member)
            assert opened is not None
            found[member.name.removeprefix("claude-daemon-debug/")] = opened.read().decode()
        return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with secrets in every place that has some, and a log that holds them all."""
    home = tmp_path / "home"
    (home / "log").mkdir(parents=True, mode=0o700)
    (home / "local.key").write_text(KEY + "\n")
    (home / "audit.key").write_text(PLANTED["audit key"])
    (home / "config.toml").write_text(
        f'[webhooks]\nsecret = "{PLANTED["webhooks"]}"\n[redis]\nurl = "redis://u:{PLANTED["url"]}@127.0.0.1:1/0"\n'
        f'[mcp.notes]\nurl = "http://127.0.0.1:1/"\nheaders = {{ X-Any = "Bearer {PLANTED["header"]}" }}\n'
    )
    (home / "config.toml").chmod(0o600)
    (tmp_path / "token").write_text(PLANTED["file"])
    monkeypatch.setenv("MY_SERVICE_TOKEN", PLANTED["environment"])
    monkeypatch.setenv("OTHER_API_KEY_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (home / "log" / "daemon.log").write_text("what an earlier daemon has left\n")
    (home / "log" / "of-mine.log").write_text("".join(f"a line with {planted}\n" for planted in PLANTED.values()))
    monkeypatch.setattr(diagnosis, "choose", lambda scope: Unsupervised())
    monkeypatch.setattr(bundle, "choose", lambda scope: Unsupervised())
    return home


def test_what_is_planted_is_in_none_of_its_parts(daemon: Daemon, invoke: Invoke, home: Path, tmp_path: Path) -> None:
    status = {**STATUS, "home": str(home), "config": {"file": str(home / "config.toml")}}
    status["log"] = {"file": str(home / "log" / "of-mine.log"), "format": "json"}
    for path, document in (
        ("status", status),
        ("health", STATUS),
        ("workers", {}),
        ("config", {}),
        ("stacks", {"tasks": []}),
    ):
        daemon.says("GET", path, {**document, "leaks": list(PLANTED.values()), "password": "short"})
    result = invoke("debug-bundle", str(tmp_path / "out.tar.gz"))
    assert result.exit_code == 0, result.output
    found = parts(tmp_path / "out.tar.gz")
    assert list(found) == [
        "README.txt",
        "status.json",
        "health.json",
        "workers.json",
        "config.json",
        "stacks.json",
        "doctor.json",
        "versions.json",
        "config.txt",
        "daemon.log",
    ]
    for name, text in {**found, "output": result.output}.items():
        for what, planted in PLANTED.items():
            assert planted not in text, (name, what)
    assert found["daemon.log"].splitlines()[0] == "a line with ***"
    assert json.loads(found["health.json"])["password"] == "***"
    assert json.loads(found["status.json"])["pid"] == 7
    assert "webhooks.secret" in found["config.txt"] and "***" in found["config.txt"]
    assert json.loads(found["versions.json"])["packages"]["click"]


def test_only_its_owner_may_read_it_and_what_is_there_stays(
    daemon: Daemon, invoke: Invoke, home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.tar.gz"
    result = invoke("debug-bundle", str(path), "--json")
    document = json.loads(result.stdout)
    assert (document["path"], document["size_bytes"]) == (str(path), path.stat().st_size)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    assert before[3] == 0  # no file name in the header of gzip
    asked = len(daemon.requests)
    assert invoke("debug-bundle", str(path)).exit_code == 7
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert invoke("debug-bundle", str(tmp_path / "link")).exit_code == 7
    assert len(daemon.requests) == asked, "nothing is gathered for nothing"
    assert path.read_bytes() == before and not (tmp_path / "elsewhere").exists()
    assert invoke("debug-bundle", str(tmp_path / "no" / "such" / "directory")).exit_code == 1


def test_with_no_daemon_it_has_what_there_is_and_says_what_is_missing(ctl: Ctl, short_dir: Path) -> None:
    path = short_dir / "out.tar.gz"
    ended = ctl("debug-bundle", str(path), "--json", env={"CLAUDE_DAEMON_HTTP__PORT": "0"})
    assert ended.code == 0, ended.err
    found = parts(path)
    assert {"README.txt", "doctor.json", "versions.json", "config.txt"} <= set(found)
    missing = {one["part"]: one["reason"] for one in json.loads(ended.out)["missing"]}
    assert set(missing) == {
        "status.json",
        "health.json",
        "workers.json",
        "config.json",
        "stacks.json",
        "daemon.log",
    }
    assert "not running" in missing["status.json"] and "status.json: not running" in found["README.txt"]


def test_of_a_long_log_the_last_whole_lines_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "LOG_BYTES", 50)
    log = tmp_path / "daemon.log"
    log.write_text("".join(f"line {number:04}\n" for number in range(100)))
    assert bundle._tail(log) == "".join(f"line {number:04}\n" for number in range(96, 100))


# redaction


def test_keys_look_the_same_here_as_to_the_daemon() -> None:
    assert (redaction.SECRET_LIKE.pattern, redaction.SECRET_LIKE.flags) == (
        secret.SECRET_LIKE.pattern,
        secret.SECRET_LIKE.flags,
    )
    assert redaction.SECRET_NAME.pattern == masking._SECRET_NAME.pattern


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key cd_abcdefghijkl, sk-ant-abcdefgh.", "key cd_***, sk-***."),
        ("Authorization: Bearer abc.def", "Authorization: *** ***"),
        ("{'authorization': 'Bearer abc'}", "{'authorization': ***}"),
        ('"api_key": "a \\"quoted\\" one", "next": 1', '"api_key": ***, "next": 1'),
        ("MY_SECRET=abc DEF_PASSWORD='x y' z", "MY_SECRET=*** DEF_PASSWORD=*** z"),
        ("redis://user:pass@host/0", "redis://***@host/0"),
        ("input_tokens=12 key_id=local task_id=task_1", "input_tokens=12 key_id=local task_id=task_1"),
    ],
)
def test_what_looks_like_a_secret_or_bears_its_name_is_taken_out(text: str, shown: str) -> None:
    assert Redactor(()).text(text) == shown


@pytest.mark.parametrize("form", ["a/known one+1", "a%2Fknown%20one%2B1", 'a/known \\"one', "a%2Fknown%20%22one"])
def test_a_known_secret_is_taken_out_in_every_form(form: str) -> None:
    assert Redactor(["a/known one+1", 'a/known "one']).text(f"<{form}>") == "<***>"


def test_a_word_that_is_too_short_is_no_secret() -> None:
    assert Redactor(["local"]).text("the local key") == "the local key"


def test_files_that_cannot_be_read_hold_no_secrets(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff not toml")
    (tmp_path / "local.key").mkdir()
    assert list(known_secrets({"A_TOKEN_FILE": str(tmp_path)}, tmp_path, tmp_path / "config.toml")) == []
