"""Chromium without a window, for tests and pictures of the pages: driven by Playwright, the machine's own browser."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Page,
    Request,
    WebSocket,
    async_playwright,
)

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Without them a start looks for Google's hosts, which tests never reach.
_QUIET = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_WATCH = """addEventListener("securitypolicyviolation", (event) =>
    console.error(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));"""
PATIENCE_MS = 20_000.0


def installed() -> Path | None:
    """The browser that this machine has."""
    return next((Path(found) for name in NAMES if (found := shutil.which(name))), None)


@asynccontextmanager
async def chromium(path: Path) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=_QUIET)
        yield browser
        await browser.close()


@dataclass
class Seen:
    """What a browser did with a page: everything it asked for, and whatever it complained of."""

    asked: list[Request] = field(default_factory=list)
    sockets: list[WebSocket] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    """What went out over the sockets."""
    complaints: list[str] = field(default_factory=list)

    def hosts(self) -> set[str]:
        return {urlsplit(url).netloc for url in self.addresses()}

    def addresses(self) -> list[str]:
        return [*(one.url for one in self.asked), *(one.url for one in self.sockets)]


@asynccontextmanager
async def opened(browser: Browser, **options: Any) -> AsyncIterator[tuple[Page, Seen]]:
    """A page of its own, with nothing kept from another."""
    context: BrowserContext = await browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    await context.add_init_script(_WATCH)
    page, seen = await context.new_page(), Seen()

    def asked(request: Request) -> None:
        seen.asked.append(request)

    def connected(socket: WebSocket) -> None:
        seen.sockets.append(socket)
        socket.on("framesent", sent)

    def sent(frame: str | bytes) -> None:
        seen.sent.append(frame if isinstance(frame, str) else frame.decode())

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            seen.complaints.append(message.text)

    def failed(error: Error) -> None:
        seen.complaints.append(str(error))

    page.on("request", asked)
    page.on("websocket", connected)
    page.on("console", said)
    page.on("pageerror", failed)
    yield page, seen
    await context.close()
