"""Sinks: the file and its rotation, losses, and readers that stop reading; on real descriptors."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import select
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from claude_daemon.config import Log
from claude_daemon.telemetry.logging import PROBE_S, configure
from claude_daemon.telemetry.sink import ENOUGH_BYTES, SCARCE_BYTES, Sink, open_log
from tests.telemetry.conftest import Start, log

# The file


def test_the_file_is_the_owners_alone_even_where_it_was_not(start: Start, tmp_path: Path) -> None:
    (tmp_path / "daemon.log").touch(mode=0o644)
    (tmp_path / "daemon.log").chmod(0o644)
    logs = start()
    assert stat.S_IMODE(logs.path.stat().st_mode) == 0o600


def test_after_a_rotation_the_new_file_is_written_to(start: Start) -> None:
    logs = start()
    log.info("one")
    old = logs.path.rename(logs.path.with_suffix(".1"))
    log.info("two")
    assert logs.handle.reopen()
    log.info("three")
    assert [json.loads(line)["event"] for line in old.read_text().splitlines()] == ["one", "two"]
    assert json.loads(logs.path.read_text())["event"] == "three"
    assert stat.S_IMODE(logs.path.stat().st_mode) == 0o600


def test_where_reopening_fails_the_old_file_goes_on_and_the_log_says_so(start: Start) -> None:
    logs = start()
    old = logs.path.rename(logs.path.with_suffix(".1"))
    logs.path.mkdir()
    assert not logs.handle.reopen()
    log.info("after")
    events = [json.loads(line)["event"] for line in old.read_text().splitlines()]
    assert events == ["log.reopen_failed", "after"]


def test_a_hundred_reopenings_leak_no_descriptor(start: Start) -> None:
    logs = start()
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(100):
        logs.handle.reopen()
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_file_that_cannot_be_opened_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        configure(Log(), stream=io.StringIO(), path=tmp_path / "missing" / "daemon.log")


# Losses


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_raises_nothing_and_lines_are_counted() -> None:
    stream = io.StringIO()
    handle = configure(Log(), stream=stream, path=Path("/dev/full"))
    for number in range(3):
        log.info("a", number=number)
    assert handle.lost == 3
    assert len(stream.getvalue().splitlines()) == 3
    handle.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_spares_access_lines_at_once_and_tries_the_others(start: Start) -> None:
    stream = io.StringIO()
    handle = configure(Log(), stream=stream, path=Path("/dev/full"))
    log.info("http.access", number=1)
    log.info("http.access", number=2)
    log.info("task.settled")
    assert (handle.lost, handle.spared) == (2, 1)
    assert handle.scarce == "No space left on device"
    handle.look(0.0)
    assert (handle.lost, handle.spared) == (3, 1), "stderr alone has the line"
    told = json.loads(stream.getvalue().splitlines()[-1])
    assert (told["event"], told["level"], told["reason"]) == ("log.scarce", "warning", "No space left on device")
    handle.close()


def test_of_a_disk_that_is_nearly_full_the_rest_is_left_to_what_matters(tmp_path: Path) -> None:
    """And with room again the file itself has a line of what it lacks."""
    free = [float(SCARCE_BYTES)]
    path, stream = tmp_path / "a.log", io.StringIO()
    handle = configure(Log(), stream=stream, path=path)
    handle._sinks[-1]._free = lambda fd: free[-1]
    handle.look(0.0)
    log.info("http.access")
    assert handle.scarce is None
    free.append(SCARCE_BYTES - 1)
    handle.look(1.0)
    log.info("http.access")
    log.info("control.access")
    log.info("task.settled")
    free.append(ENOUGH_BYTES - 1)
    handle.look(2.0)
    log.info("http.access")
    assert handle.spared == 3
    free.append(ENOUGH_BYTES)
    handle.look(3.0)
    log.info("http.access")
    handle.look(4.0)
    handle.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == [
        "http.access", "log.scarce", "task.settled", "log.room_again", "http.access"
    ]  # fmt: skip
    assert lines[3]["access_lines_spared"] == 3
    assert (handle.lost, handle.scarce) == (0, None)
    assert len(stream.getvalue().splitlines()) == 8, "stderr has all of them"


def test_a_disk_that_has_room_and_takes_nothing_is_tried_now_and_then(tmp_path: Path) -> None:
    """A quota is such a disk."""
    handle = configure(Log(), stream=io.StringIO(), path=tmp_path / "a.log")
    sink = handle._sinks[-1]
    broken = [True]

    def put(line: bytes, write: Callable[[bytes], None] = sink._put) -> None:
        if broken[-1]:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        write(line)

    sink._put = put  # type: ignore[method-assign]
    log.info("task.settled")
    handle.look(0.0)
    lost = handle.lost
    handle.look(1.0)
    handle.look(2.0)
    handle.look(PROBE_S)
    assert handle.lost == lost + 1, "one line in so long"
    broken.append(False)
    handle.look(1.0 + PROBE_S)
    assert handle.scarce is None
    (line,) = (tmp_path / "a.log").read_text().splitlines()
    assert json.loads(line)["event"] == "log.room_again"
    handle.close()


async def test_the_watch_looks_by_itself(start: Start) -> None:
    logs = start()
    looked = asyncio.Event()
    logs.handle.look = lambda now: looked.set()  # type: ignore[method-assign]
    watching = asyncio.create_task(logs.handle.watch())
    async with asyncio.timeout(10):
        await looked.wait()
    watching.cancel()


def test_a_stream_that_is_closed_or_broken_raises_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe:
        handle = configure(Log(), stream=pipe, path=tmp_path / "a.log")
        os.close(reader)
        log.info("a")
        assert handle.lost == 1
        handle.close()
    stream = io.StringIO()
    handle = configure(Log(), stream=stream, path=tmp_path / "a.log")
    stream.close()
    log.info("b")
    assert handle.lost == 1
    assert len((tmp_path / "a.log").read_text().splitlines()) == 2
    handle.close()


def test_a_line_torn_by_a_full_disk_does_not_swallow_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.log"
    sink = Sink(open_log(path))
    write, room = os.write, [3, 0]

    def scarce(fd: int, data: bytes) -> int:
        size = room.pop(0) if room else len(data)
        if not size:
            raise OSError(errno.ENOSPC, "full")
        return write(fd, data[:size])

    monkeypatch.setattr(os, "write", scarce)
    sink.write(b"first")
    sink.write(b"second")
    assert (path.read_bytes(), sink.lost) == (b"fir\nsecond\n", 1)
    sink.close()
    sink.write(b"third")
    assert sink.lost == 2


def test_lines_of_many_threads_are_never_mixed(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    handle = configure(Log(), stream=io.StringIO(), path=path)

    def chatter() -> None:
        for _ in range(200):
            log.info("a", text="x" * 500)

    threads = [threading.Thread(target=chatter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.close()
    lines = path.read_text().splitlines()
    assert len(lines) == 1600
    assert all(len(json.loads(line)["text"]) == 500 for line in lines)


# Readers that stop reading


def pipe() -> tuple[int, int]:
    return os.pipe()


def unix_socket() -> tuple[int, int]:
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()


def everything(reader: int) -> bytes:
    """What can be read without waiting."""
    os.set_blocking(reader, False)
    found = b""
    try:
        while part := os.read(reader, 1024 * 1024):
            found += part
    except BlockingIOError:
        pass
    return found


@pytest.mark.parametrize("channel", [pipe, unix_socket])
@pytest.mark.parametrize("size", [100, 7000])
def test_a_reader_that_stops_costs_lines_and_never_waits(
    tmp_path: Path, channel: Callable[[], tuple[int, int]], size: int
) -> None:
    reader, writer = channel()
    path, emitted = tmp_path / "a.log", 0
    with os.fdopen(writer, "w") as stream:
        handle = configure(Log(), stream=stream, path=path)
        while handle.lost < 100:
            log.info("a", number=emitted, text="x" * size)
            emitted += 1
        assert os.get_blocking(writer), "others may write there too"
        told = everything(reader)
        log.info("after")
        told += everything(reader)
        assert handle.lost == 100
        handle.close()
    os.close(reader)
    lines = told.decode().splitlines()
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    assert [line.get("number") for line in whole] == [*range(emitted - 100), None]
    assert len(lines) - len(whole) in (0, 1), "at most the first lost line has left its beginning"
    assert len(path.read_text().splitlines()) == emitted + 1


def test_of_a_long_line_that_does_not_fit_the_rest_is_lost_and_the_next_is_whole() -> None:
    reader, writer = os.pipe()
    sink = Sink(writer)
    page = b"." * select.PIPE_BUF
    while select.select([], [writer], [], 0)[1]:
        os.write(writer, page)
    os.read(reader, 2 * len(page))
    sink.write(b"a" * 5 * len(page))
    assert sink.lost == 1
    everything(reader)
    sink.write(b"b" * 5 * len(page))
    assert everything(reader) == b"\n" + b"b" * 5 * len(page) + b"\n"
    assert sink.lost == 1
    sink.close()
    os.close(reader)
