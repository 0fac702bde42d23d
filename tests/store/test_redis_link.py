"""The connection to Redis, against a real one, and against what is none."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from redis import asyncio as aioredis

from claude_daemon.core.lifecycle import Check
from claude_daemon.core.retry import Backoff
from claude_daemon.ports import Clock, HealthReport
from claude_daemon.secret import Secret
from claude_daemon.store.redis import Address, BadAddress, Pace, RedisLink
from claude_daemon.store.redis.link import MAX_VERSION_CHARS
from tests.redis_server import LOADING, RedisServer

WAIT_S = 20.0
HUSH = "hush-hush"
# Nothing is too slow, and what is gone is tried again at once: a test changes what it is about.
CALM = Pace(
    ping_interval_s=0.02,
    connect_s=WAIT_S,
    answer_s=WAIT_S,
    slow_s=WAIT_S,
    backoff=Backoff(first_seconds=0.001, limit_seconds=0.01),
)
# A step that the test cannot wait for.
NEVER_S = 3600.0

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Watch:
    """A link that runs, and everything it says. ``attempts`` are those that have failed."""

    told: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    attempts: int = 0
    changes: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _failed: asyncio.Event = field(default_factory=asyncio.Event)
    _link: RedisLink | None = None

    @property
    def link(self) -> RedisLink:
        assert self._link is not None
        return self._link

    def make(self, url: str, pace: Pace = CALM, monotonic: Clock = time.monotonic) -> RedisLink:
        self._link = RedisLink(
            Secret(url),
            told=self._tell,
            changed=self._change,
            random=self._draw,
            monotonic=monotonic,
            pace=pace,
        )
        return self._link

    def _tell(self, name: str, fields: Mapping[str, Any]) -> None:
        self.told.append((name, fields))

    def _change(self) -> None:
        self.changes += 1
        self._news.set()

    def _draw(self) -> float:
        """Drawn once for each delay."""
        self.attempts += 1
        self._failed.set()
        return 0.0

    @property
    def events(self) -> list[str]:
        return [name for name, _ in self.told]

    async def until(self, seen: Callable[[HealthReport], bool]) -> HealthReport:
        """Waits until health is like that; looks again whenever the link says that something has changed."""
        async with asyncio.timeout(WAIT_S):
            while not seen(report := self.link.check()):
                self._news.clear()
                await self._news.wait()
        return report

    async def failed(self, attempts: int) -> None:
        """Waits until so many attempts have failed since the beginning."""
        async with asyncio.timeout(WAIT_S):
            while self.attempts < attempts:
                self._failed.clear()
                await self._failed.wait()


def well(report: HealthReport) -> bool:
    return report.status is Check.PASS


def ill(report: HealthReport) -> bool:
    return report.status is Check.WARN


def because(words: str) -> Callable[[HealthReport], bool]:
    return lambda report: report.status is Check.WARN and words in report.reason


@asynccontextmanager
async def watched(url: str, pace: Pace = CALM) -> AsyncIterator[Watch]:
    """Runs a link to there. In the end it is closed, and must end by that."""
    watch = Watch()
    link = watch.make(url, pace)
    async with asyncio.timeout(2 * WAIT_S), asyncio.TaskGroup() as group:
        group.create_task(link.run())
        yield watch
        await link.close()


@asynccontextmanager
async def peer(talk: Talk) -> AsyncIterator[str]:
    """Something that listens on a port and is no Redis; its address, without a scheme."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except ConnectionError:
            pass  # the link has gone first
        finally:
            writer.close()

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


MakeServer = Callable[..., RedisServer]


@pytest.fixture
async def make_server(tmp_path: Path) -> AsyncIterator[MakeServer]:
    """Makes servers that do not run yet, each in a directory of its own; they end with the test."""
    made: list[RedisServer] = []

    def make(*options: str, tls: tuple[Path, Path] | None = None) -> RedisServer:
        home = tmp_path / f"redis-{len(made)}"
        home.mkdir()
        made.append(RedisServer(home, *options, tls=tls))
        return made[-1]

    yield make
    for server in made:
        await server.kill()


@pytest.fixture
async def server(make_server: MakeServer) -> RedisServer:
    """One that runs."""
    started = make_server()
    await started.start()
    return started


@pytest.fixture
async def guarded(make_server: MakeServer) -> RedisServer:
    """One that runs and asks for a password; and it knows a user who may do nothing but ping."""
    started = make_server("--requirepass", HUSH, "--user", "pinger", "on", f">{HUSH}", "+ping")
    await started.start()
    return started


# connected


async def test_a_connection_passes_with_version_latency_and_age(server: RedisServer) -> None:
    async with watched(server.url) as watch:
        report = await watch.until(well)
        version = (await server.command("INFO", "server"))["redis_version"]
        assert report.reason == "" and report.details is not None
        assert report.details["address"] == server.url
        assert report.details["version"] == version
        assert 0 < report.details["latency_seconds"] < WAIT_S
        assert 0 <= report.details["connected_seconds"] < WAIT_S
        assert watch.told == [
            ("redis.connected", {k: report.details[k] for k in ("address", "version", "latency_seconds")})
        ]


async def test_a_unix_socket_is_as_good(server: RedisServer) -> None:
    async with watched(f"{server.unix_url}?db=3") as watch:
        report = await watch.until(well)
        assert report.details is not None and report.details["address"] == server.unix_url


async def test_a_server_that_does_not_tell_its_version_is_as_good(make_server: MakeServer) -> None:
    server = make_server("--rename-command", "HELLO", "")
    await server.start()
    async with watched(server.url) as watch:
        report = await watch.until(well)
        assert report.details is not None and report.details["version"] is None


async def test_a_version_without_end_is_cut() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while said := await reader.read(4096):
            writer.write(b"+PONG\r\n" if b"PING" in said else b"*2\r\n$7\r\nversion\r\n$99\r\n" + b"7" * 99 + b"\r\n")

    async with peer(talk) as address, watched(f"redis://{address}") as watch:
        report = await watch.until(well)
        assert report.details is not None and report.details["version"] == "7" * MAX_VERSION_CHARS


async def test_the_age_of_a_connection_goes_by_the_monotonic_clock(server: RedisServer) -> None:
    now = 1000.0
    watch = Watch()
    link = watch.make(server.url, monotonic=lambda: now)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        group.create_task(link.run())
        await watch.until(well)
        now += 86400.0
        report = link.check()
        await link.close()
    assert report.details is not None and report.details["connected_seconds"] == 86400.0


async def test_a_slow_answer_warns_until_the_next_that_is_quick(server: RedisServer) -> None:
    pace = replace(CALM, slow_s=0.2)
    async with watched(server.url, pace) as watch:
        await watch.until(well)
        async with asyncio.TaskGroup() as group:
            group.create_task(server.command("DEBUG", "SLEEP", "0.6"))
            report = await watch.until(ill)
        assert report.reason.startswith("Redis is slow: 0.") and report.details is not None
        assert report.details["latency_seconds"] > 0.2
        await watch.until(well)
        assert watch.events == ["redis.connected"]


# down, and back


async def test_a_redis_that_is_down_at_the_start_is_told_once_and_found_once_it_is_there(
    make_server: MakeServer,
) -> None:
    server = make_server()
    async with watched(server.url) as watch:
        report = await watch.until(because("Connection refused"))
        assert report.details == {"address": server.url}
        await watch.failed(5)
        assert watch.events == ["redis.lost"]
        await server.start()
        await watch.until(well)
        assert watch.events == ["redis.lost", "redis.connected"]


async def test_a_killed_redis_is_missed_at_once_and_used_again_on_the_same_port(server: RedisServer) -> None:
    async with watched(server.url, replace(CALM, ping_interval_s=NEVER_S)) as watch:
        await watch.until(well)
        for _ in range(2):
            await server.kill()
            await watch.until(because("Connection refused"))
            await server.start()
            await watch.until(well)
        assert watch.events == ["redis.connected", *["redis.lost", "redis.connected"] * 2]
        assert watch.told[1][1]["reason"] in ("it has closed the connection", "Connection reset by peer")


async def test_a_redis_that_hangs_is_lost_until_it_answers_again(server: RedisServer) -> None:
    async with watched(server.url, replace(CALM, connect_s=0.3, answer_s=0.3)) as watch:
        await watch.until(well)
        server.pause()
        await watch.until(because("it does not answer"))
        await watch.failed(3)
        server.resume()
        await watch.until(well)
        assert watch.events[:2] == ["redis.connected", "redis.lost"]
        assert watch.told[1][1]["reason"] == "it does not answer"


@dataclass(frozen=True, kw_only=True)
class Noted(Backoff):
    """No delay; it keeps the counts of failures that it was asked with."""

    first_seconds: float = 0.0
    limit_seconds: float = 0.0
    failures: list[int] = field(default_factory=list)

    def delay(self, failures: int, random: float) -> float:
        self.failures.append(failures)
        return super().delay(failures, random)


@pytest.mark.parametrize(("ping_interval_s", "failures"), [(NEVER_S, [1, 2, 3]), (0.0, [1, 1, 1])])
async def test_a_connection_is_no_success_before_it_has_lasted(
    server: RedisServer, ping_interval_s: float, failures: list[int]
) -> None:
    backoff = Noted()
    pace = replace(CALM, ping_interval_s=ping_interval_s, backoff=backoff)
    async with watched(server.url, pace) as watch:
        for lost in range(3):
            await watch.until(lambda report, lost=lost: well(report) and len(backoff.failures) == lost)  # type: ignore[misc]
            await server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await watch.failed(lost + 1)
        assert backoff.failures == failures
        assert watch.changes >= 6  # each loss is news, though its reason is that of the one before


async def test_a_redis_that_loads_is_waited_for(make_server: MakeServer) -> None:
    server = make_server()
    await server.start()
    await server.command("DEBUG", "POPULATE", "20000")
    await server.command("SAVE")
    await server.kill()
    # Twenty seconds for its keys; while it loads it looks at its clients every kilobyte.
    await server.start("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024", until=LOADING)
    async with watched(server.url) as watch:
        await watch.until(because("it is still loading its data (LOADING)"))
        await server.command("CONFIG", "SET", "key-load-delay", "0")
        await watch.until(well)
        assert watch.events == ["redis.lost", "redis.connected"]


async def test_a_redis_that_takes_no_more_clients_is_named_so(server: RedisServer) -> None:
    async with server.client() as client:
        await client.config_set("maxclients", "1")
        async with watched(server.url) as watch:
            await watch.until(because("it has no room for another client"))
            await client.config_set("maxclients", "100")
            await watch.until(well)


# passwords


@pytest.mark.parametrize(
    ("credentials", "reason"),
    [
        ("", "it asks for a password, and redis.url has none (NOAUTH)"),
        (":wrong-one@", "the user or the password in redis.url is wrong (WRONGPASS)"),
        ("nobody:wrong-one@", "the user or the password in redis.url is wrong (WRONGPASS)"),
    ],
)
@pytest.mark.parametrize("over", ["tcp", "unix"])
async def test_what_is_wrong_with_a_password_is_named_and_a_reload_mends_it(
    guarded: RedisServer, credentials: str, reason: str, over: str
) -> None:
    shown = guarded.url if over == "tcp" else guarded.unix_url
    async with watched(shown.replace("://", f"://{credentials}")) as watch:
        await watch.until(because(reason))
        await watch.failed(3)
        watch.link.retarget(Secret(shown.replace("://", f"://:{HUSH}@")))
        await watch.until(well)
        assert watch.events == ["redis.lost", "redis.connected"]
        assert {fields["address"] for _, fields in watch.told} == {shown}
        assert HUSH not in repr(watch) and "wrong-one" not in repr(watch.told)


async def test_a_password_for_a_redis_that_has_none_is_named(server: RedisServer) -> None:
    async with watched(server.url.replace("://", f"://:{HUSH}@")) as watch:
        await watch.until(because("it has no password, and redis.url has one (ERR)"))
        assert HUSH not in repr(watch)


async def test_a_user_who_may_do_nothing_but_ping_is_enough(guarded: RedisServer) -> None:
    async with watched(guarded.url.replace("://", f"://pinger:{HUSH}@")) as watch:
        await watch.until(well)


async def test_a_database_that_is_not_there_is_named(server: RedisServer) -> None:
    async with watched(f"{server.url}/99") as watch:
        await watch.until(because("it has no database of the number in redis.url (ERR)"))


# what is no Redis


async def test_a_peer_that_accepts_and_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        async with watched(url, replace(CALM, connect_s=0.05)) as watch:
            await watch.until(because("it does not answer"))
            await watch.failed(3)
            assert watch.events == ["redis.lost"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there is not Redis"),
        (b"\x00\xff\x15\x03\x01", "what answers there is not Redis"),
        (b"+OK\r\n", "what answers there is not Redis"),
        (b"*1\r\n$4\r\nPONG\r\n", "what answers there is not Redis"),
        (b"-MOVED nowhere\r\n", "what answers there is not Redis (ValueError)"),
        (b"-BUSY it is\r\n", "it answers with an error (BUSY)"),
        (b"-oh no\r\n", "what answers there is not Redis"),
        (b"+PONG\r\n+PONG\r\n+PONG\r\n", "what answers there is not Redis"),
        (b"", "it has closed the connection"),
    ],
)
@pytest.mark.parametrize("credentials", ["", f":{HUSH}@"])
async def test_nonsense_is_a_reason_and_never_an_error(answer: bytes, reason: str, credentials: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096) and answer:
            writer.write(answer)

    async with peer(talk) as address, watched(f"redis://{credentials}{address}") as watch:
        await watch.until(because(reason))
        await watch.failed(3)


async def test_a_peer_that_repeats_what_it_is_told_gives_no_password_away() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while said := await reader.read(4096):
            writer.write(
                b"-ERR unknown command 'AUTH', with args beginning with: " + said.replace(b"\r\n", b" ") + b"\r\n"
            )

    async with peer(talk) as address, watched(f"redis://:{HUSH}@{address}") as watch:
        await watch.until(because("it answers with an error (ERR)"))
        assert HUSH not in repr(watch)


async def test_a_name_that_is_not_found_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*args: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    async with watched("redis://redis.example:6379") as watch:
        await watch.until(because("its name is not found: Name or service not known"))


async def test_a_name_with_several_addresses_has_one_reason() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        async with watched(f"redis://localhost:{closed.getsockname()[1]}") as watch:
            report = await watch.until(because("Connection refused"))
            assert report.reason == "Redis: Connection refused"


# TLS


@pytest.fixture
async def tls(make_server: MakeServer, tmp_path: Path) -> tuple[RedisServer, Path]:
    """One that speaks TLS on its port, and the certificate that vouches for it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate: apt-get install openssl")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=redis -keyout {key} -out {certificate}"
    command += " -addext subjectAltName=IP:127.0.0.1"
    maker = await asyncio.create_subprocess_exec(*command.split(), stderr=asyncio.subprocess.DEVNULL)
    assert await maker.wait() == 0
    started = make_server(tls=(certificate, key))
    await started.start()
    return started, certificate


async def test_tls_is_spoken_with_whom_a_certificate_vouches_for(tls: tuple[RedisServer, Path]) -> None:
    server, certificate = tls
    async with watched(f"{server.url}?ssl_ca_certs={certificate}") as watch:
        report = await watch.until(well)
        assert report.details is not None and report.details["address"] == server.url


async def test_tls_that_nobody_ends_holds_up_neither_another_address_nor_the_close(
    tls: tuple[RedisServer, Path],
) -> None:
    server, certificate = tls
    async with asyncio.timeout(10), watched(f"{server.url}?ssl_ca_certs={certificate}") as watch:
        await watch.until(well)
        server.pause()
        watch.link.retarget(Secret("unix:///nonexistent/redis.sock"))
        for _ in range(5):
            await asyncio.sleep(0)  # the first connection is about to end now
        watch.link.retarget(Secret("unix:///"))
        await watch.until(because("Connection refused"))
    server.resume()


def test_nobody_is_asked_for_the_passphrase_of_a_key() -> None:
    connection = Address.of(Secret("rediss://127.0.0.1?ssl_keyfile=k&ssl_certfile=c")).connection()
    assert isinstance(connection, aioredis.SSLConnection) and connection.ssl_context.password == ""


async def test_what_fails_of_tls_is_named(tls: tuple[RedisServer, Path], tmp_path: Path) -> None:
    server, certificate = tls
    missing = tmp_path / "missing.pem"
    async with watched(server.url) as watch:
        await watch.until(because("its certificate is not accepted: self-signed certificate"))
        watch.link.retarget(Secret(f"{server.url}?ssl_ca_certs={missing}"))
        await watch.until(because("No such file or directory"))
        watch.link.retarget(Secret(f"{server.url}?ssl_ca_certs={certificate}"))
        await watch.until(well)


async def test_tls_with_a_redis_that_speaks_none_is_named(server: RedisServer) -> None:
    async with watched(server.url.replace("redis:", "rediss:"), replace(CALM, connect_s=0.2)) as watch:
        await watch.until(because("it does not answer"))  # it waits for the end of a line


async def test_tls_with_what_answers_otherwise_is_named() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with peer(talk) as address, watched(f"rediss://{address}") as watch:
        await watch.until(because("TLS with it fails: WRONG_VERSION_NUMBER"))


# another address, and the end


async def clients(server: RedisServer) -> int:
    """Those that a server has beside the one that asks."""
    return len((await server.command("CLIENT", "LIST")).splitlines()) - 1


async def test_another_address_is_connected_to_and_the_first_one_left(
    server: RedisServer, make_server: MakeServer
) -> None:
    other = make_server()
    await other.start()
    async with watched(server.url, replace(CALM, ping_interval_s=NEVER_S)) as watch:
        await watch.until(well)
        watch.link.retarget(Secret(other.url))
        assert watch.link.check().reason == "Redis: there is no connection yet"
        await watch.until(well)
        assert await clients(server) == 0 and await clients(other) == 1
        assert [(name, fields["address"]) for name, fields in watch.told] == [
            ("redis.connected", server.url),
            ("redis.connected", other.url),
        ]


async def test_the_same_address_changes_nothing(server: RedisServer) -> None:
    async with watched(server.url, replace(CALM, ping_interval_s=NEVER_S)) as watch:
        await watch.until(well)
        changes = watch.changes
        watch.link.retarget(Secret(server.url))
        assert well(watch.link.check()) and watch.changes == changes


async def test_another_address_ends_the_wait_for_the_first(server: RedisServer) -> None:
    never = Backoff(first_seconds=NEVER_S, limit_seconds=NEVER_S)
    async with watched("unix:///nonexistent/redis.sock", replace(CALM, backoff=never)) as watch:
        await watch.until(because("No such file or directory"))
        for url in ("unix:///nonexistent/other.sock", server.unix_url, server.url):  # at once: the last one counts
            watch.link.retarget(Secret(url))
        report = await watch.until(well)
        assert report.details is not None and report.details["address"] == server.url
        assert watch.events == ["redis.lost", "redis.connected"]


async def test_an_address_that_cannot_be_used_changes_nothing(server: RedisServer) -> None:
    async with watched(server.url) as watch:
        await watch.until(well)
        with pytest.raises(BadAddress):
            watch.link.retarget(Secret("redis://127.0.0.1:port"))
        assert well(watch.link.check())


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def test_a_hundred_reloads_leave_nothing_open(server: RedisServer) -> None:
    async with watched(server.url) as watch:
        await watch.until(well)
        before = open_descriptors()
        for turn in range(100):
            watch.link.retarget(Secret(f"{server.url}/{turn % 2}"))
            if turn % 3:  # the others are cut short while they connect
                await watch.until(well)
        await watch.until(well)
        assert open_descriptors() == before
        assert await clients(server) == 1


async def test_closing_ends_the_run_and_the_connection(server: RedisServer) -> None:
    watch = Watch()
    link = watch.make(server.url)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        task = group.create_task(link.run())
        await watch.until(well)
        await link.close()
        await asyncio.sleep(0)
        assert task.done()
        await link.close()
    assert await clients(server) == 0
    assert ill(link.check())
    assert watch.events == ["redis.connected"]


async def test_what_the_first_connection_still_does_after_a_reload_is_not_told(server: RedisServer) -> None:
    watch = Watch()
    asked = 0

    def monotonic() -> float:
        nonlocal asked
        asked += 1
        if asked == 3:  # before and after the first ping; and now it is connected
            link.retarget(Secret(server.unix_url))
        return 0.0

    link = watch.make(server.url, monotonic=monotonic)
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        group.create_task(link.run())
        await watch.until(well)
        await link.close()
    assert asked > 3
    assert [(name, fields["address"]) for name, fields in watch.told] == [("redis.connected", server.unix_url)]


async def test_a_link_that_never_ran_is_closed_and_then_does_not_run(server: RedisServer) -> None:
    link = Watch().make(server.url)
    await link.close()
    async with asyncio.timeout(WAIT_S):
        await link.run()
    assert await clients(server) == 0


@pytest.mark.parametrize("hangs", [False, True])
async def test_cancelling_the_run_ends_the_connection(server: RedisServer, hangs: bool) -> None:
    watch = Watch()
    link = watch.make(server.url)
    if hangs:
        server.pause()
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        task = group.create_task(link.run())
        if not hangs:
            await watch.until(well)
        else:
            await asyncio.sleep(0)  # it has begun
        task.cancel()
    assert task.cancelled()
    await link.close()
    server.resume()
    assert await clients(server) == 0


# the URL


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{HUSH}/x@127.0.0.1",
        f"redis://:{HUSH}?x@127.0.0.1",
        f"redis://:{HUSH}#x@127.0.0.1",
        "redis://:12/34@127.0.0.1",
        "redis://:12?34@127.0.0.1",
        "redis://:12#34@127.0.0.1",
        f"redis://127.0.0.1:{HUSH}",
        f"redis://[{HUSH}",
        f"redis://{HUSH * 9}",
        f"redis://127.0.0.1?socket_timeout={HUSH}",
        f"redis://127.0.0.1?redis_connect_func={HUSH}",
        f"redis://127.0.0.1?ssl_ca_certs={HUSH}",
        f"redis://127.0.0.1?db={HUSH}",
        f"rediss://127.0.0.1?ssl_cert_reqs={HUSH}",
        f"unix://{HUSH}",
        f"http://{HUSH}",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(BadAddress) as refused:
        Address.of(Secret(url))
    assert HUSH not in str(refused.value) and refused.value.__cause__ is None


def test_an_address_shows_neither_user_nor_password_nor_options() -> None:
    address = Address.of(Secret(f"rediss://u%2F:{HUSH}@[::1]:6380/2?ssl_password={HUSH}&password={HUSH}"))
    assert address.shown == "rediss://[::1]:6380/2"
    assert HUSH not in repr(address)


def test_the_daemon_that_has_no_redis_does_not_load_its_client() -> None:
    code = "import sys, claude_daemon.daemon, claude_daemon.store; print('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE).stdout == b"False\n"
