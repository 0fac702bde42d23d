"""`python -m claude_daemon.offline` as a process of its own."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from claude_daemon.offline.__main__ import main
from tests.offline.conftest import Caller, deltas, request


@asynccontextmanager
async def _served(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, str]]]:
    """The running process, and the line it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "claude_daemon.offline",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        yield process, orjson.loads(await process.stdout.readline())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _settings(http: aiohttp.ClientSession, base_url: str) -> Any:
    async with http.get(base_url + "/offline/settings") as response:
        return await response.json()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_serves_what_it_printed_until_it_is_told_to_stop(number: signal.Signals) -> None:
    async with _served("--record", "--tokens", "4", "--pace", "1") as (process, told):
        async with aiohttp.ClientSession(headers={"x-api-key": told["api_key"]}) as http:
            caller = Caller(http=http, base_url=told["base_url"])
            assert len(deltas(await caller.events("hi"))) == 4
            assert (await _settings(http, told["base_url"]))["pace_s"] == 0.001
            async with http.get(told["base_url"] + "/offline/requests") as response:
                assert len((await response.json())["requests"]) == 1
        process.send_signal(number)
        assert await process.wait() == 0


async def test_the_command_stops_while_an_answer_stalls() -> None:
    async with _served("--api-key", "k") as (process, told):
        assert told["api_key"] == "k"
        async with aiohttp.ClientSession(headers={"x-api-key": "k"}) as http:
            caller = Caller(http=http, base_url=told["base_url"])
            async with caller.post(request("[[stall=1]]", stream=True)) as response:
                process.terminate()
                assert await process.wait() == 0
                with pytest.raises(aiohttp.ClientError):
                    await response.read()


def test_a_bad_argument_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--tokens", "0"])
    assert caught.value.code == 2
    assert "tokens: must be an integer" in capsys.readouterr().err
