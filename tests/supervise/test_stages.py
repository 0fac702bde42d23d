"""The pipe by which a daemon that starts tells how far it is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from claude_daemon.supervise.stages import MAX_LINE_BYTES, Listener, Stage, Teller

PATIENCE_S = 5.0


@pytest.fixture
def pipe() -> Iterator[tuple[Listener, Teller]]:
    hear, tell = os.pipe()
    listener, teller = Listener(hear), Teller(tell)
    yield listener, teller
    listener.close()
    teller.close()


async def test_stages_are_heard_one_by_one_and_the_end_is_none(pipe: tuple[Listener, Teller]) -> None:
    listener, teller = pipe
    teller.tell(Stage.CHECKED)
    teller.tell(Stage.READY, ready=False, reason="no credential")
    teller.close()
    first, second = await listener.next(PATIENCE_S), listener.wait(PATIENCE_S)
    assert first is not None and (first.stage, first.fields) == (Stage.CHECKED, {"pid": os.getpid()})
    assert second is not None and second.stage is Stage.READY
    assert second.fields == {"pid": os.getpid(), "ready": False, "reason": "no credential"}
    assert await listener.next(PATIENCE_S) is None
    assert listener.wait(PATIENCE_S) is None


async def test_who_waits_is_woken_by_what_is_told_later(pipe: tuple[Listener, Teller]) -> None:
    listener, teller = pipe
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(listener.next(PATIENCE_S))
        await asyncio.sleep(0)
        teller.tell(Stage.LISTENING, url="http://[::1]:8006")
    told = waiting.result()
    assert told is not None and told.fields["url"] == "http://[::1]:8006"


async def test_silence_is_none_at_the_timeout_and_nothing_is_lost(pipe: tuple[Listener, Teller]) -> None:
    listener, teller = pipe
    assert listener.wait(0.01) is None
    assert await listener.next(0.01) is None
    teller.tell(Stage.CHECKED)
    told = await listener.next(PATIENCE_S)
    assert told is not None and told.stage is Stage.CHECKED


def test_a_line_without_end_is_the_end() -> None:
    hear, tell = os.pipe()
    listener = Listener(hear)
    for _ in range(MAX_LINE_BYTES // 4096 + 1):
        os.write(tell, b"x" * 4096)
        assert listener.wait(0) is None
    assert len(listener._unread) == MAX_LINE_BYTES + 4096  # and then it reads no more
    os.write(tell, b"x" * 4096)
    assert listener.wait(PATIENCE_S) is None
    assert len(listener._unread) <= MAX_LINE_BYTES + 2 * 4096
    os.close(tell)
    listener.close()


def test_a_teller_whom_nobody_hears_goes_on() -> None:
    hear, tell = os.pipe()
    teller = Teller(tell)
    os.close(hear)
    teller.tell(Stage.READY)
    teller.close()
    teller.tell(Stage.READY)
    Teller(None).tell(Stage.READY)


def test_a_pipe_that_is_full_or_a_word_too_long_is_never_waited_for(pipe: tuple[Listener, Teller]) -> None:
    listener, teller = pipe
    for _ in range(2000):
        teller.tell(Stage.FAILED, message="x" * 200)
    told = listener.wait(PATIENCE_S)
    assert told is not None and told.fields["message"] == "x" * 200


def test_what_is_too_long_to_tell_is_told_without_its_words(pipe: tuple[Listener, Teller]) -> None:
    listener, teller = pipe
    teller.tell(Stage.FAILED, message="x" * MAX_LINE_BYTES)
    told = listener.wait(PATIENCE_S)
    assert told is not None and told.fields["message"] == "too long to tell"
