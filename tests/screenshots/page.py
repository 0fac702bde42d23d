"""``/ui`` as a picture: a real daemon on the offline model, whose key has worked for a month and waits for a word.

What is this machine's (the path of a directory) is told as an ordinary installation has it.
"""

from __future__ import annotations

import datetime
import math
import signal
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import aiohttp

from claude_daemon.offline import OfflineModel
from tests.browser import chromium, installed, opened
from tests.e2e.agents import call
from tests.support import DaemonProcess

PICTURE: Final = Path(__file__).resolve().parents[2] / "docs" / "images" / "ui.png"
SIZE: Final = {"width": 1280, "height": 900}
ROOT: Final = "/srv/projects"
READY_MS: Final = 60_000.0  # checks remember for a while what a busy machine did to them
DAYS: Final = 29
PRICES: Final = "input = 3.0\noutput = 15.0\ncache_write = 3.75\ncache_read = 0.3\n"
BEFORE: Final = "def area(width: float, height: float) -> float:\n    return width + height\n"
AFTER: Final = BEFORE.replace("+", "*")
DONE: Final = (
    "The backup of last night is complete: 214 tables, 3 of them new.",
    "Two dependencies have a fix: click 8.5.1 and aiohttp 3.14.5. Neither changes what we use.",
    "Nothing to do: all 1,482 tests pass.",
    "The release notes are in CHANGELOG.md, under Unreleased.",
    "Three of the twelve open questions can be answered from the documentation alone.",
)
# In the page, every text that names a directory of this machine.
_ELSEWHERE: Final = """([here, there]) => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) node.data = node.data.replaceAll(here, there);
}"""


async def ui() -> None:
    """Draws :data:`PICTURE` anew."""
    browser = installed()
    if browser is None:
        sys.exit("no browser is here: apt-get install -y --no-install-recommends chromium")
    with tempfile.TemporaryDirectory(prefix="claude-daemon-page-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        async with OfflineModel() as model:
            daemon = DaemonProcess(_home(directory), model, {"engine.workers": 4})
            await daemon.start()
            try:
                await _draw(browser, daemon, directory / "root")
            finally:
                await daemon.stop(signal.SIGQUIT)


def _home(directory: Path) -> Path:
    (directory / "root" / "shapes").mkdir(parents=True)
    (directory / "root" / "shapes" / "area.py").write_text(BEFORE)
    configuration = directory / "home" / ".claude-daemon" / "config.toml"
    configuration.parent.mkdir(parents=True, mode=0o700)
    configuration.write_text(f'[[roots]]\npath = "{directory}/root"\n[prices.sonnet]\n{PRICES}')
    configuration.chmod(0o600)
    return directory / "home"


async def _draw(browser: Path, daemon: DaemonProcess, root: Path) -> None:
    wish = {"name": "operator", "role": "full", "budget_usd_day": 20.0, "budget_usd_month": 400.0}
    made = await daemon.control("keys", "POST", wish)
    _past(daemon.home / ".claude-daemon" / "daemon.db", made["id"])
    async with aiohttp.ClientSession(daemon.url, headers={"x-api-key": made["key"]}) as http:
        await _work(http, root / "shapes")
    async with chromium(browser) as started, opened(started, viewport=SIZE, device_scale_factor=1.5) as (page, _):
        await page.goto(f"{daemon.url}/ui")
        await page.get_by_label("Key", exact=True).fill(made["key"])
        await page.keyboard.press("Enter")
        await page.locator("#state-pill", has_text="Ready").wait_for(timeout=READY_MS)
        await page.locator("#approvals .diff").wait_for()
        await page.locator("#usage .chart").wait_for()
        await page.evaluate(_ELSEWHERE, [str(root), ROOT])
        await page.screenshot(path=PICTURE, animations="disabled", full_page=True)


def _past(database: Path, key_id: str) -> None:
    """A month of use, more on working days."""
    today = datetime.datetime.now(datetime.UTC)
    with closing(sqlite3.connect(database, timeout=10)) as db, db:
        for ago in range(1, DAYS + 1):
            at = today - datetime.timedelta(days=ago)
            turns = 3 if at.weekday() > 4 else 24 + round(14 * math.sin(ago * 1.7))
            row: dict[str, Any] = {"at": at.timestamp(), "task_id": f"task_{ago}", "attempt": 1, "key_id": key_id}
            row |= {"trust_domain": key_id, "model": "claude-sonnet-5-5", "lane": "agent", "day": at.date().isoformat()}
            row |= {"input_tokens": 900 * turns, "output_tokens": 2100 * turns, "model_calls": 4 * turns}
            row |= {"cache_creation_input_tokens": 5000 * turns, "cache_read_input_tokens": 61000 * turns}
            row["cost_micro_usd"] = row["charged_micro_usd"] = 71250 * turns
            columns, places = ", ".join(row), ", ".join("?" * len(row))
            db.execute(f"INSERT INTO ledger ({columns}) VALUES ({places})", tuple(row.values()))


async def _work(http: aiohttp.ClientSession, shapes: Path) -> None:
    """Some tasks that have ended, one of them badly, one that runs, one that waits for a word."""
    for number, text in enumerate(DONE):
        await _ended(http, {"prompt": f"[[text={text}]] [[pace=40ms]]"})
        if number == 1:
            await _ended(http, {"prompt": "x [[error=400]]"})
    await _submit(http, {"prompt": "[[tokens=4000]] [[pace=100ms]]"})
    area = str(shapes / "area.py")
    read = call("Read", file_path=area)
    edit = call("Edit", file_path=area, old_string="width + height", new_string="width * height")
    tools = {"allow": ["Read", "Grep"], "approval": "ask"}
    await _submit(http, {"prompt": f"[[one-by-one]] {read} {edit}", "cwd": str(shapes), "tools": tools})


async def _submit(http: aiohttp.ClientSession, body: dict[str, Any]) -> str:
    async with http.post("/v1/tasks", json=body) as response:
        response.raise_for_status()
        return str((await response.json())["id"])


async def _ended(http: aiohttp.ClientSession, body: dict[str, Any]) -> None:
    task_id = await _submit(http, body)
    async with http.get(f"/v1/tasks/{task_id}/events") as response:
        await response.read()
