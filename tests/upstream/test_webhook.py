"""The webhook sender, against real receivers on loopback. No name is resolved by the system."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon import __version__
from claude_daemon.ports.webhook import WebhookAnswer
from claude_daemon.upstream.address import ReceiverRefused
from claude_daemon.upstream.webhook import Resolve, WebhookClient, retry_after_seconds, signature, signing_key

NOW = 1_800_000_000.75
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"id":"task_1","state":"succeeded"}'
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes
    peer: str


Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def accepted(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=204)


@dataclass
class Receiver:
    """A real HTTP server on 127.0.0.1; what it got, and how it answers."""

    answer: Answer = accepted
    received: list[Received] = field(default_factory=list)
    port: int = 0

    def url(self, host: str = "127.0.0.1", path: str = "/hook?token=hush") -> str:
        return f"http://{host}:{self.port}{path}"

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body, headers = await request.content.read(), {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.path_qs, headers, body, str(request.remote)))
        return await self.answer(request)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    runner = web.ServerRunner(web.Server(made.handle, access_log=None, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


@dataclass
class Names:
    """What names resolve to: one answer after another, the last one for ever."""

    answers: list[list[str]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def no_names(host: str) -> Sequence[str]:
    raise AssertionError(f"{host} was resolved")


@asynccontextmanager
async def client(
    *,
    secret: str = SECRET,
    timeout_s: float = PATIENCE_S,
    allow_private: bool = True,
    resolve: Resolve | None = no_names,
) -> AsyncIterator[WebhookClient]:
    made = WebhookClient(secret, timeout_s=timeout_s, allow_private=allow_private, now=lambda: NOW, resolve=resolve)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def sent(url: str, **settings: object) -> WebhookAnswer:
    async with client(**settings) as made:  # type: ignore[arg-type]
        return await made.send("whk_1", url, BODY)


def expected(key: bytes, body: bytes) -> str:
    """The signature as the specification words it, computed without our code."""
    return "v1," + base64.b64encode(hmac.new(key, b"whk_1.1800000000." + body, hashlib.sha256).digest()).decode()


# what is sent


@pytest.mark.parametrize(
    ("secret", "key"),
    [
        (SECRET, base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")),
        ("correct horse ünd battery", "correct horse ünd battery".encode()),
    ],
)
async def test_a_delivery_is_a_signed_post(receiver: Receiver, secret: str, key: bytes) -> None:
    assert await sent(receiver.url(), secret=secret) == WebhookAnswer(status=204)
    (got,) = receiver.received
    assert (got.path, got.body) == ("/hook?token=hush", BODY)
    assert got.headers["content-type"] == "application/json"
    assert got.headers["user-agent"] == f"claude-daemon/{__version__}"
    assert (got.headers["webhook-id"], got.headers["webhook-timestamp"]) == ("whk_1", "1800000000")
    assert got.headers["webhook-signature"] == expected(key, BODY)


def test_the_signature_is_that_of_the_specifications_own_example() -> None:
    made = signature(signing_key(SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("secret", ["whsec_", "whsec_%%%", "whsec_abc", "whsec_MfKQ 9r8G"])
def test_a_secret_that_stands_for_no_key_is_refused_without_being_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="must be base64") as refused:
        signing_key(secret)
    assert secret.removeprefix("whsec_") in ("", "abc") or secret not in str(refused.value)


def test_a_client_does_not_show_its_secret() -> None:
    made = WebhookClient(SECRET, timeout_s=1, allow_private=False, now=lambda: NOW, resolve=no_names)
    assert SECRET not in repr(made) and "MfKQ" not in repr(made)


async def test_no_proxy_and_no_netrc_of_the_environment_has_a_say(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await sent(receiver.url())).delivered
    assert "authorization" not in receiver.received[0].headers


async def test_a_long_body_goes_out_as_it_is(receiver: Receiver) -> None:
    body = b'"' + b"x" * 3_000_000 + b'"'
    async with client() as made:
        assert (await made.send("whk_1", receiver.url(), body)).delivered
    (got,) = receiver.received
    assert got.body == body
    assert got.headers["content-length"] == str(len(body))
    assert got.headers["webhook-signature"] == expected(base64.b64decode(SECRET[6:]), body)


async def test_every_delivery_has_a_connection_of_its_own(receiver: Receiver) -> None:
    async with client() as made:
        for _ in range(2):
            assert (await made.send("whk_1", receiver.url(), BODY)).delivered
    assert [got.headers["connection"] for got in receiver.received] == ["close", "close"]


# what comes back


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_is_a_delivery(receiver: Receiver, status: int) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status)

    receiver.answer = answer
    assert (await sent(receiver.url())).delivered


@pytest.mark.parametrize("status", [304, 400, 401, 404, 410, 429, 500, 503])
async def test_any_other_status_is_none(receiver: Receiver, status: int) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, headers={"retry-after": "7"})

    receiver.answer = answer
    answered = await sent(receiver.url())
    assert not answered.delivered
    assert answered.gone is (status == 410)
    assert (answered.status, answered.retry_after_seconds, str(answered)) == (status, 7.0, f"status {status}")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(receiver: Receiver, status: int) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, headers={"location": "/elsewhere"})

    receiver.answer = answer
    answered = await sent(receiver.url())
    assert (answered.status, answered.delivered) == (status, False)
    assert len(receiver.received) == 1


async def test_a_slow_receiver_has_until_the_timeout(receiver: Receiver) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    receiver.answer = answer
    async with asyncio.timeout(PATIENCE_S):
        assert await sent(receiver.url(), timeout_s=0.1) == WebhookAnswer(reason="no answer within 0.1 s")


async def test_a_lookup_counts_for_the_timeout_too() -> None:
    async def never(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        raise AssertionError

    answered = await sent("http://receiver.test/", timeout_s=0.1, resolve=never)
    assert answered.reason == "no answer within 0.1 s"


async def test_an_answer_that_does_not_end_was_one_even_so(receiver: Receiver) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.Event().wait()
        raise AssertionError

    receiver.answer = answer
    async with asyncio.timeout(PATIENCE_S):
        assert (await sent(receiver.url(), timeout_s=0.2)).delivered


async def test_a_flood_is_cut_and_the_status_counts(receiver: Receiver) -> None:
    cut = asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        finally:
            cut.set()

    receiver.answer = answer
    async with asyncio.timeout(PATIENCE_S):
        assert (await sent(receiver.url(), timeout_s=2 * PATIENCE_S)).delivered
        await cut.wait()


async def test_a_short_answer_is_heard_out() -> None:
    """Its sender can send all of it before we leave, and meets no reset."""
    end: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(BODY)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await reader.read()
        writer.write(b"fine")
        end.set_result(await reader.read())
        writer.close()

    async with raw(talk) as url:
        assert (await sent(url)).delivered
        assert await end == b""


@pytest.mark.parametrize(
    "said", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000, b"HTTP/1.1 999999 ?\r\n\r\n"]
)
async def test_what_is_no_http_is_no_delivery(said: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(BODY)
        writer.write(said)
        writer.close()

    async with raw(talk) as url:
        answered = await sent(url)
    assert (answered.status, answered.reason.partition(":")[0]) == (None, "it broke off")


async def test_a_receiver_that_is_down_is_no_delivery() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        answered = await sent(f"http://127.0.0.1:{bound.getsockname()[1]}/hook?token=hush")
    assert answered.status is None
    assert answered.reason.startswith("it cannot be reached: ")
    assert "hush" not in answered.reason


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate: apt-get install openssl")
async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=receiver.test -keyout {key} -out {cert}"
    maker = await asyncio.create_subprocess_exec(*command.split(), stderr=asyncio.subprocess.DEVNULL)
    assert await maker.wait() == 0
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(cert, key)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise AssertionError("the handshake went through")

    async with raw(talk, own) as url:
        port = url.rstrip("/").rpartition(":")[2]
        answered = await sent(f"https://receiver.test:{port}/", resolve=Names([["127.0.0.1"]]))
    assert answered == WebhookAnswer(reason="its certificate is not to be trusted")


async def test_plain_http_is_no_https(receiver: Receiver) -> None:
    answered = await sent(receiver.url().replace("http:", "https:"))
    assert answered.status is None and "hush" not in answered.reason
    assert receiver.received == []


# where it goes


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "localhost"])
async def test_a_literal_is_checked_as_well(receiver: Receiver, host: str) -> None:
    answered = await sent(receiver.url(host), allow_private=False)
    assert answered.reason.startswith("refused: ")
    assert receiver.received == []


async def test_the_last_door_is_in_place(receiver: Receiver) -> None:
    """Even a request that our own check of the URL has not seen connects to no refused address."""
    async with client(allow_private=False) as made:
        assert made._session is not None
        with pytest.raises(ReceiverRefused):
            await made._session.get(receiver.url())
    assert receiver.received == []


async def test_a_mapped_literal_is_the_address_that_it_maps(receiver: Receiver) -> None:
    assert (await sent(receiver.url("[::ffff:127.0.0.1]"))).delivered


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["2606:4700::1111", "::ffff:127.0.0.1"],
        ["::1"],
        ["fe80::1%lo"],
        ["not an address"],
    ],
)
async def test_one_refused_address_refuses_the_name(receiver: Receiver, addresses: list[str]) -> None:
    """A public one beside it is not asked instead: nothing is sent anywhere."""
    answered = await sent(receiver.url("receiver.test"), allow_private=False, resolve=Names([addresses]))
    assert answered.reason.startswith("refused: ")
    assert receiver.received == []


async def test_metadata_addresses_are_refused_where_private_ones_are_allowed() -> None:
    answered = await sent("http://receiver.test/", resolve=Names([["127.0.0.1", "169.254.169.254"]]))
    assert answered.reason == "refused: 169.254.169.254 is where a cloud keeps credentials"


async def test_a_name_is_resolved_once_and_what_was_checked_is_connected_to(receiver: Receiver) -> None:
    names = Names([["127.0.0.1"], ["169.254.169.254"]])
    assert (await sent(receiver.url("receiver.test"), resolve=names)).delivered
    assert names.asked == ["receiver.test"]
    assert receiver.received[0].headers["host"] == f"receiver.test:{receiver.port}"


async def test_the_next_delivery_resolves_and_checks_anew(receiver: Receiver) -> None:
    """No cache of names and no kept connection stands in for the check."""
    names = Names([["127.0.0.1"], ["169.254.169.254"]])
    async with client(resolve=names) as made:
        assert (await made.send("whk_1", receiver.url("receiver.test"), BODY)).delivered
        assert (await made.send("whk_2", receiver.url("receiver.test"), BODY)).reason.startswith("refused: ")
    assert len(names.asked) == 2 and len(receiver.received) == 1


async def test_of_several_checked_addresses_one_that_answers_will_do(receiver: Receiver) -> None:
    """The second of them, where nobody listens on the first."""
    names = Names([["127.9.9.9", "127.0.0.1"]])
    assert (await sent(receiver.url("receiver.test"), resolve=names)).delivered


@pytest.mark.parametrize("error", [OSError("down"), socket.gaierror(socket.EAI_NONAME, "unknown"), None])
async def test_a_name_without_an_address_is_no_delivery(error: OSError | None) -> None:
    async def resolve(host: str) -> Sequence[str]:
        if error is not None:
            raise error
        return []

    answered = await sent("http://receiver.test/?token=hush", resolve=resolve)
    assert answered == WebhookAnswer(reason="its name cannot be resolved")


async def test_by_default_the_system_resolves(receiver: Receiver) -> None:
    """``localhost`` needs no network; it is resolved and found private."""
    answered = await sent(receiver.url("localhost"), resolve=None)
    assert answered.delivered
    async with client(allow_private=False, resolve=None) as made:
        assert made.check(receiver.url("localhost")) is not None


async def test_a_url_is_checked_as_it_will_be_sent_to() -> None:
    async with client(allow_private=False) as strict, client(allow_private=True) as lenient:
        assert strict.check("http://10.0.0.1/") is not None
        assert lenient.check("http://10.0.0.1/") is None


# Retry-After


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 120 ", 120.0),
        (formatdate(NOW + 30, usegmt=True), 29.25),
        (formatdate(NOW - 30, usegmt=True), 0.0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("", None),
        ("Fri, 31 Foo 2026 99:99:99 GMT", None),
    ],
)
def test_a_retry_after_is_read_in_either_form(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, NOW) == seconds


@given(st.text())
def test_any_retry_after_can_be_read(value: str) -> None:
    seconds = retry_after_seconds(value, NOW)
    assert seconds is None or seconds >= 0


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A receiver by hand: what it says need not be HTTP."""
    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        await server.wait_closed()
