"""Where answers come from, for each thing that may be set or found."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from claude_daemon.config import load
from claude_daemon.engine.lane import login_present
from claude_daemon.engine.launch import Access
from claude_daemon.sources import Source, find_source
from tests.conftest import StartDaemon

SECRET = "sk-ant-test-" + "x" * 40


async def found(
    tmp_path: Path,
    environ: dict[str, str],
    *,
    login: bool = False,
    upstream: str = "auto",
    been_in: str | None = ".claude",
) -> Source:
    """The source, with a ``claude`` that has a login or none; ``been_in`` is what it once left in the home."""
    cli = tmp_path / "claude"
    cli.write_text(f'#!/bin/sh\necho "$*" >> "$HOME/asked"\nexit {0 if login else 1}\n')
    cli.chmod(0o755)
    environ = {"HOME": str(tmp_path), **environ}
    loaded = load({"engine.upstream": upstream}, environ)
    loaded.paths.engine_dir.mkdir(parents=True)
    if been_in is not None and been_in.endswith(".json"):
        (tmp_path / been_in).write_text("{}")
    elif been_in is not None:
        (tmp_path / been_in).mkdir()
    async with AsyncExitStack() as stack:
        return await find_source(loaded, cli, environ, stack)


@pytest.mark.parametrize("login", [True, False])
@pytest.mark.parametrize(
    ("variable", "kind", "header"),
    [("ANTHROPIC_API_KEY", "api_key", "x-api-key"), ("ANTHROPIC_AUTH_TOKEN", "auth_token", "Authorization")],
)
async def test_a_key_of_ours_goes_before_a_login_and_stays_with_the_broker(
    tmp_path: Path, variable: str, kind: str, header: str, login: bool
) -> None:
    source = await found(tmp_path, {variable: SECRET, "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}, login=login)
    assert (source.name, source.kind, source.access) == ("anthropic", kind, Access.BROKER)
    assert source.base_url == "http://127.0.0.1:9"
    assert source.credential is not None and SECRET in source.credential.headers()[header]
    assert source.oauth_token is None
    assert variable in source.origin
    assert SECRET not in repr(source)


async def test_an_oauth_token_is_the_clis_alone(tmp_path: Path) -> None:
    source = await found(tmp_path, {"CLAUDE_CODE_OAUTH_TOKEN": SECRET})
    assert (source.kind, source.access, source.credential, source.oauth_token) == (
        "oauth_token", Access.OAUTH, None, SECRET
    )  # fmt: skip
    assert SECRET not in repr(source)


@pytest.mark.parametrize("upstream", ["auto", "anthropic"])
async def test_a_login_that_claude_finds_is_used_in_place(tmp_path: Path, upstream: str) -> None:
    source = await found(tmp_path, {}, login=True, upstream=upstream)
    assert (source.name, source.kind, source.access, source.credential) == ("anthropic", "login", Access.LOGIN, None)


@pytest.mark.parametrize(
    ("been_in", "environ"),
    [(".claude", {}), (".claude.json", {}), ("elsewhere", {"CLAUDE_CONFIG_DIR": "elsewhere"})],
)
async def test_claude_is_asked_in_a_home_that_it_has_been_in(
    tmp_path: Path, been_in: str, environ: dict[str, str]
) -> None:
    environ = {name: str(tmp_path / place) for name, place in environ.items()}
    assert (await found(tmp_path, environ, login=True, been_in=been_in)).kind == "login"
    assert (tmp_path / "asked").read_text() == "auth status\n"


@pytest.mark.parametrize(
    ("been_in", "environ"), [(None, {}), (".claude", {"CLAUDE_CONFIG_DIR": "elsewhere"}), (".claude-daemon-old", {})]
)
async def test_claude_is_not_asked_where_it_has_never_been(
    tmp_path: Path, been_in: str | None, environ: dict[str, str]
) -> None:
    environ = {name: str(tmp_path / place) for name, place in environ.items()}
    assert (await found(tmp_path, environ, login=True, been_in=been_in)).name == "offline"
    assert not (tmp_path / "asked").exists()


async def test_a_home_that_is_none_has_no_login(tmp_path: Path) -> None:
    assert not await login_present(Path("/bin/true"), {"HOME": str(tmp_path / "no" / "such")}, tmp_path)
    (tmp_path / "file").touch()
    assert not await login_present(Path("/bin/true"), {"HOME": str(tmp_path / "file")}, tmp_path)


async def test_a_start_without_a_credential_leaves_nothing_in_the_home_but_its_own(start_daemon: StartDaemon) -> None:
    """By the real CLI, which makes its files in whatever home it is asked in."""
    daemon = await start_daemon(environ={"ANTHROPIC_API_KEY": ""})
    assert (await daemon.control("status"))["upstream"] == "offline"
    assert (await daemon.chat("Hello [[tokens=3]]")).status == 200
    assert await daemon.stop() == 0
    assert [path.name for path in daemon.home.iterdir()] == [".claude-daemon"]


async def test_without_anything_it_is_the_offline_model_where_that_may_be_chosen(tmp_path: Path) -> None:
    source = await found(tmp_path, {}, upstream="auto")
    assert (source.name, source.access) == ("offline", Access.BROKER)
    assert source.credential is not None


async def test_without_anything_there_is_none_where_it_may_not(tmp_path: Path) -> None:
    source = await found(tmp_path, {}, upstream="anthropic")
    assert (source.name, source.kind, source.credential) == ("anthropic", "none", None)


async def test_asked_for_offline_nothing_else_is_looked_at(tmp_path: Path) -> None:
    source = await found(tmp_path, {"ANTHROPIC_API_KEY": SECRET}, login=True, upstream="offline")
    assert source.name == "offline"
    assert source.credential is not None and SECRET not in str(source.credential.headers())
