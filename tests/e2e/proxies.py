"""The real nginx and the real Caddy in front of a daemon, each on the file of etc/ that users copy."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

NAME = "claude.example.com"
"""The name in both files, which stays: clients of a test are told where it is, and the daemon must allow it."""
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0

ETC = Path(__file__).resolve().parents[2] / "etc"


@dataclass(frozen=True, slots=True)
class Certificate:
    """For :data:`NAME`, signed by itself."""

    cert: Path
    key: Path

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.cert))


async def make_certificate(openssl: Path, directory: Path) -> Certificate:
    made = Certificate(directory / "cert.pem", directory / "key.pem")
    command = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={NAME}"
    files = f"-addext subjectAltName=DNS:{NAME} -keyout {made.key} -out {made.cert}"
    maker = await asyncio.create_subprocess_exec(openssl, *f"{command} {files}".split(), stderr=asyncio.subprocess.PIPE)
    _, words = await maker.communicate()
    assert maker.returncode == 0, words.decode()
    return made


@dataclass(frozen=True, slots=True)
class Proxy:
    """One that serves. ``http`` is a client with the daemon's key."""

    url: str
    port: int
    trust: ssl.SSLContext
    http: aiohttp.ClientSession

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection with nothing in between but TLS."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.trust, server_hostname=NAME, ssl_shutdown_timeout=0.1
        )
        try:
            yield reader, writer
        finally:
            writer.close()


Front = Callable[[str, str, Certificate, Path], AbstractAsyncContextManager[Proxy]]
"""The daemon's URL and key, a certificate, and an empty directory for all that the proxy writes → the proxy."""


def nginx(program: Path) -> Front:
    @asynccontextmanager
    async def front(upstream: str, key: str, certificate: Certificate, directory: Path) -> AsyncIterator[Proxy]:
        port = _free_port()
        sample = _filled(
            ETC / "nginx" / "claude-daemon.conf",
            {
                "server 127.0.0.1:8006;": f"server {urlsplit(upstream).netloc};",
                "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
                f"/etc/letsencrypt/live/{NAME}/fullchain.pem": str(certificate.cert),
                f"/etc/letsencrypt/live/{NAME}/privkey.pem": str(certificate.key),
                "/var/log/nginx/claude-daemon.log": f"{directory}/access.log",
            },
        )
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"    {kind}_temp_path {directory}/{kind};\n" for kind in kinds)
        main = f"daemon off;\npid {directory}/pid;\nerror_log stderr notice;\nworker_processes 1;\nevents {{}}\n"
        file = directory / "nginx.conf"
        file.write_text(f"{main}http {{\n{temporary}{sample}}}\n")
        # -e: what it says before it has read the file would go to /var/log.
        argv = (str(program), "-e", "stderr", "-p", str(directory), "-c", str(file))
        async with _running(argv, directory, says="start worker process"), _client(key, certificate, port) as proxy:
            yield proxy

    return front


def caddy(program: Path) -> Front:
    @asynccontextmanager
    async def front(upstream: str, key: str, certificate: Certificate, directory: Path) -> AsyncIterator[Proxy]:
        port = _free_port()
        sample = _filled(
            ETC / "caddy" / "Caddyfile",
            {
                "reverse_proxy 127.0.0.1:8006 {": f"reverse_proxy {urlsplit(upstream).netloc} {{",
                f"#tls /etc/caddy/{NAME}.pem /etc/caddy/{NAME}.key": f"tls {certificate.cert} {certificate.key}",
            },
        )
        # It asks nobody for certificates, listens for no administrator, and on no other address than loopback's.
        options = ("admin off", "auto_https off", "default_bind 127.0.0.1", f"https_port {port}", "grace_period 1s")
        file = directory / "Caddyfile"
        file.write_text("{\n" + "".join(f"\t{option}\n" for option in options) + "}\n" + sample)
        argv = (str(program), "run", "--adapter", "caddyfile", "--config", str(file))
        says = "serving initial configuration"
        async with _running(argv, directory, says=says), _client(key, certificate, port) as proxy:
            yield proxy

    return front


def _filled(sample: Path, changes: Mapping[str, str]) -> str:
    """The file of etc/ with its ports and paths changed, each of which it names once, and nothing else."""
    text = sample.read_text()
    for old, new in changes.items():
        assert text.count(old) == 1, f"{sample} does not say once: {old}"
        text = text.replace(old, new)
    return text


def _free_port() -> int:
    """Neither server can be given a socket that listens already."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def _running(argv: tuple[str, ...], directory: Path, *, says: str) -> AsyncIterator[None]:
    """Runs a server whose home is the directory, from the line that says that it listens."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        env={"HOME": str(directory), "PATH": "/usr/bin:/bin"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    words: list[str] = []
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            async for line in process.stderr:
                words.append(line.decode(errors="replace"))
                if says in words[-1]:
                    break
            else:
                raise RuntimeError(f"{argv[0]} did not start: {''.join(words)}")
        rest = asyncio.create_task(_print(process.stderr))
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)  # nginx hands it on to its workers
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
            await rest
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def _print(words: asyncio.StreamReader) -> None:
    """For pytest to show beside a test that fails."""
    async for line in words:
        print(line.decode(errors="replace"), end="")


@asynccontextmanager
async def _client(key: str, certificate: Certificate, port: int) -> AsyncIterator[Proxy]:
    trust = certificate.trust()
    url = f"https://{NAME}:{port}"
    connector = aiohttp.TCPConnector(ssl=trust, resolver=_Loopback())
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(url, headers=headers, connector=connector) as http:
        yield Proxy(url, port, trust, http)


class _Loopback(AbstractResolver):
    """Every name is here."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST
            )
        ]

    async def close(self) -> None:
        pass
