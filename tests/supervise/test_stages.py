"""The pipe by which a daemon that starts tells how far it is."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
from collections.abc import Iterator

import pytest

from claude_daemon.supervise.stages import MAX_FIELD_CHARS, MAX_LINE_BYTES, Listener, Stage, Teller

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


def test_the_end_is_not_taken_for_silence(pipe: tuple[Listener, Teller]) -> None:
    listener, teller = pipe
    assert listener.wait(0) is None
    assert not listener.ended
    teller.close()
    assert listener.wait(PATIENCE_S) is None
    assert listener.ended


def test_a_line_without_end_is_the_end() -> None:
    hear, tell = os.pipe()
    listener = Listener(hear)
    while not listener.ended:
        os.write(tell, b"x" * 4096)
        assert listener.wait(0) is None
    assert len(listener._unread) == MAX_LINE_BYTES + 4096
    os.write(tell, b"x" * 4096 + b"\n")
    assert listener.wait(PATIENCE_S) is None
    assert len(listener._unread) == MAX_LINE_BYTES + 4096  # it reads no more
    os.close(tell)
    listener.close()


@pytest.mark.parametrize(
    "line", [b'{"stage": "of a newer version"}', b'{"pid": 1}', b'["ready"]', b"7", b"{", b"", b"\xff"]
)
def test_what_is_no_stage_is_passed_over(line: bytes) -> None:
    hear, tell = os.pipe()
    listener = Listener(hear)
    os.write(tell, line + b"\n")
    teller = Teller(tell)
    teller.tell(Stage.READY)
    told = listener.wait(PATIENCE_S)
    assert told is not None and told.stage is Stage.READY
    listener.close()


def test_a_descriptor_beyond_those_of_select_is_listened_to() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("no more than 2048 descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        hear, tell = os.pipe()
        listener = Listener(fcntl.fcntl(hear, fcntl.F_DUPFD_CLOEXEC, 1500))
        os.close(hear)
        Teller(tell).tell(Stage.READY)
        told = listener.wait(PATIENCE_S)
        assert told is not None and told.stage is Stage.READY
        listener.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("last", [Stage.READY, Stage.FAILED])
def test_nothing_is_told_after_the_last_word(pipe: tuple[Listener, Teller], last: Stage) -> None:
    listener, teller = pipe
    teller.tell(last)
    teller.tell(Stage.FAILED, status=1)
    told = listener.wait(PATIENCE_S)
    assert told is not None and told.stage is last
    assert listener.wait(PATIENCE_S) is None
    assert listener.ended


def test_a_teller_whom_nobody_hears_goes_on() -> None:
    hear, tell = os.pipe()
    teller = Teller(tell)
    os.close(hear)
    teller.tell(Stage.READY)
    teller.close()
    teller.tell(Stage.READY)
    Teller(None).tell(Stage.READY)


def test_a_pipe_that_is_full_is_never_waited_for(pipe: tuple[Listener, Teller]) -> None:
    listener, teller = pipe
    for _ in range(2000):
        teller.tell(Stage.LISTENING, url="x" * 200)
    told = listener.wait(PATIENCE_S)
    assert told is not None and told.fields["url"] == "x" * 200


def test_half_a_line_in_a_full_pipe_spoils_none_of_those_before(pipe: tuple[Listener, Teller]) -> None:
    listener, teller = pipe
    text = "\N{PILE OF POO}" * MAX_FIELD_CHARS  # 12 bytes each: more than a pipe takes in one piece
    for _ in range(100):
        teller.tell(Stage.LISTENING, url=text)
    heard = []
    while (told := listener.wait(PATIENCE_S)) is not None:
        heard.append(told.fields["url"])
    assert listener.ended
    assert heard and set(heard) == {text}


def test_a_text_is_cut_and_what_stands_beside_it_is_not(pipe: tuple[Listener, Teller]) -> None:
    listener, teller = pipe
    teller.tell(Stage.FAILED, status=78, message="x" * MAX_LINE_BYTES)
    told = listener.wait(PATIENCE_S)
    assert told is not None
    assert (told.fields["status"], told.fields["message"]) == (78, "x" * MAX_FIELD_CHARS)
