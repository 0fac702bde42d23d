"""The pages ``/ui`` and ``/docs`` in a real browser: what one sees and does there, and what can never happen."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest
from playwright.async_api import Browser, Page, expect

from claude_daemon.api.ui import CONTENT_SECURITY_POLICY, FILES, PAGES
from tests.browser import PATIENCE_MS, Seen, chromium, installed, opened
from tests.debian import program
from tests.e2e.agents import call
from tests.e2e.test_keys import create
from tests.support import DaemonProcess

pytestmark = pytest.mark.timeout(240)  # the first test may have to install the browser

STATIC = Path(__file__).parents[2] / "claude_daemon" / "api" / "static"
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
REFUSED = re.compile(r"Failed to load resource: the server responded with a status of 40[13]")
"""What Chromium says by itself of an answer that is a refusal."""
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium(installed() or program("chromium", "chromium")) as started:
        yield started


@asynccontextmanager
async def ui(browser: Browser, daemon: DaemonProcess, key: str | None = None, **options: Any) -> AsyncIterator[Any]:
    """The page, signed in where a key is given; what it did besides. At its end: no complaint, no other host, and the
    key in no address."""
    async with opened(browser, **options) as (page, seen):
        await page.goto(f"{daemon.url}/ui")
        if key is not None:
            await sign_in(page, key)
            await expect(page.locator("#inside")).to_be_visible()
        yield page, seen
        assert [said for said in seen.complaints if not REFUSED.match(said)] == []
        assert seen.hosts() == {urlsplit(daemon.url).netloc}
        assert [url for url in seen.addresses() if "cd_" in url] == []


async def sign_in(page: Page, key: str) -> None:
    await page.get_by_label("Key", exact=True).fill(key)
    await page.keyboard.press("Enter")


async def run(page: Page, prompt: str) -> str:
    """Submits by the form; the id of the task whose page is then open."""
    await page.get_by_label("Prompt", exact=True).fill(prompt)
    await page.get_by_role("button", name="Run").click()
    await expect(page.locator("#task")).to_be_visible()
    return urlsplit(page.url).fragment.rpartition("/")[2]


async def task_of(daemon: DaemonProcess, task_id: str) -> dict[str, Any]:
    told: dict[str, Any] = await daemon.control(f"tasks/{task_id}")
    return told


# what is served


async def test_every_file_is_served_to_anybody_under_the_strictest_policy(daemon: DaemonProcess) -> None:
    assert sorted(path.name for path in STATIC.iterdir()) == sorted(FILES.values())
    async with aiohttp.ClientSession(daemon.url) as http:
        for path, name in FILES.items():
            async with http.get(path) as response:
                assert (response.status, await response.read()) == (200, (STATIC / name).read_bytes()), path
                assert response.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.charset == "utf-8"
    assert "unsafe" not in CONTENT_SECURITY_POLICY and "http" not in CONTENT_SECURITY_POLICY


def test_the_files_hold_nothing_that_the_policy_forbids_and_name_only_each_other() -> None:
    for name in PAGES.values():
        text = (STATIC / name).read_text()
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", text), name
        named = {f"/{path}" for path in re.findall(r'(?:src|href)="([^"#]+)', text)}
        assert named <= FILES.keys() | {"/openapi.json"}, named
    for path in STATIC.glob("*.js"):
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            path
        )
        assert {f"/ui/{one}" for one in re.findall(r'from "\./([^"]+)"', text)} <= FILES.keys()
    for path in STATIC.iterdir():
        foreign = re.findall(r"https?://[^\s\"']+", path.read_text())
        assert set(foreign) <= {"http://www.w3.org/2000/svg"}, path  # a name, not an address


def _luminance(colour: str) -> float:
    if len(colour) == 4:
        colour = "#" + "".join(2 * digit for digit in colour[1:])
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_words_stand_out_from_what_they_are_written_on() -> None:
    """WCAG 2.2 AA: 4.5 to 1, in the light and in the dark."""
    schemes = re.findall(r":root \{(.*?)\}", (STATIC / "base.css").read_text(), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", scheme))
        pairs = [(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("ground", "surface", "sunken")]
        pairs += [(kind, f"{kind}-soft") for kind in ("pass", "warn", "fail", "running")]
        pairs += [(kind, "surface") for kind in ("pass", "warn", "fail", "running")]
        pairs += [("accent-ink", "accent"), ("surface", "pass"), ("ink", "accent-soft")]
        for ink, ground in pairs:
            dark, light = sorted((_luminance(colours[ink]), _luminance(colours[ground])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


# the door


async def test_a_key_is_typed_in_kept_in_the_tab_and_forgotten(browser: Browser, daemon: DaemonProcess) -> None:
    key = (await create(daemon, "visitor"))["key"]
    async with ui(browser, daemon) as (page, seen):
        await expect(page.locator("#state-pill")).to_have_text(re.compile("Ready|Degraded"))
        assert {urlsplit(one.url).path for one in seen.asked} <= FILES.keys() | {"/health"}
        for wrong, why in (("not a key", "no spaces"), ("cd_wrong", "This key is not valid."), ("cd_é", "no key")):
            await sign_in(page, wrong)
            await expect(page.locator("#door-note")).to_contain_text(why)
        await sign_in(page, key)
        await expect(page.locator("#checks")).to_contain_text("worker pool")
        await expect(page.locator("#tiles")).to_contain_text("of 3")  # details, which only a key is told
        assert await page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 1]
        await page.reload()
        await expect(page.locator("#tiles")).to_contain_text("of 3")
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.locator("#door")).to_be_visible()
        assert await page.evaluate("sessionStorage.length") == 0
        assert key not in await page.content()
    assert key not in orjson.dumps(daemon.log()).decode()


async def test_the_page_ends_with_its_key(browser: Browser, daemon: DaemonProcess) -> None:
    made = await create(daemon, "short-lived")
    async with ui(browser, daemon, made["key"]) as (page, _):
        await run(page, "[[tokens=900]] [[pace=20ms]]")
        await expect(page.locator(".said")).not_to_be_empty()
        await daemon.control(f"keys/{made['id']}/revoke", "POST", {})
        await expect(page.locator("#door-note")).to_have_text("This key was revoked.")
        assert await page.evaluate("sessionStorage.length") == 0


# a task


async def test_a_task_is_followed_as_it_comes_though_its_connection_is_lost(
    browser: Browser, daemon: DaemonProcess
) -> None:
    key = (await create(daemon, "follower"))["key"]
    async with ui(browser, daemon, key) as (page, seen):
        task_id = await run(page, "Tell me a story. [[tokens=120]] [[pace=20ms]]")
        await expect(page.locator("#asked-text")).to_contain_text("Tell me a story.")
        await expect(page.locator(".said")).not_to_be_empty()
        listed = (await daemon.control("connections"))["connections"]
        (stream,) = [one["id"] for one in listed if one["path"] == "/v1/stream"]
        await daemon.control(f"connections/{stream}", "DELETE")
        await expect(page.locator(".note.pass")).to_contain_text("Succeeded")
        told = (await task_of(daemon, task_id))["result"]["text"]
        assert await page.locator(".said").all_inner_texts() == [told]
        first, again = (orjson.loads(frame) for frame in seen.sent)
        assert (first["op"], first["task"], first["after"]) == ("subscribe", task_id, 0)
        assert (again["op"], again["task"]) == ("subscribe", task_id) and again["after"] > 0
        assert len(seen.sockets) == 2
        await expect(page.locator("#facts")).to_contain_text("claude-sonnet")
        await page.get_by_role("link", name="All tasks").click()
        await expect(page.locator(f'#tasks a[href="#/task/{task_id}"]')).to_contain_text("succeeded")


async def test_a_task_is_cancelled(browser: Browser, daemon: DaemonProcess) -> None:
    key = (await create(daemon, "canceller"))["key"]
    async with ui(browser, daemon, key) as (page, _):
        task_id = await run(page, "[[tokens=900]] [[pace=20ms]]")
        await expect(page.locator(".said")).not_to_be_empty()
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.locator(".note.warn")).to_contain_text("Cancelled")
        await expect(page.locator("#task-state")).to_have_text("cancelled")
        assert (await task_of(daemon, task_id))["state"] == "cancelled"


async def test_whatever_a_model_says_is_text(browser: Browser, daemon: DaemonProcess) -> None:
    key = (await create(daemon, "hostile"))["key"]
    async with ui(browser, daemon, key) as (page, _):
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        await run(page, f"{HOSTILE} [[text={HOSTILE}]]")
        await expect(page.locator(".note.pass")).to_contain_text("Succeeded")
        assert await page.locator(".said").inner_text() == HOSTILE
        assert HOSTILE in await page.locator("#asked-text").inner_text()
        await page.get_by_role("link", name="All tasks").click()
        await expect(page.locator("#tasks .what").first).to_have_text(HOSTILE)
        async with aiohttp.ClientSession(daemon.url, headers={"x-api-key": key}) as http:
            body = {"prompt": "x [[error=400]]", "metadata": {"hostile": HOSTILE}}
            async with http.post("/v1/tasks", json=body) as response:
                task_id = (await response.json())["id"]
        await page.goto(f"{daemon.url}/ui#/task/{task_id}")
        await expect(page.locator("#facts")).to_contain_text(HOSTILE)
        await expect(page.locator("#outcome")).to_contain_text("upstream_invalid_request")
        assert await page.locator("main img, main script").count() == 0
        assert await page.title() == "claude-daemon"


async def test_the_list_has_pages_and_filters(browser: Browser, daemon: DaemonProcess) -> None:
    key = (await create(daemon, "many"))["key"]
    async with aiohttp.ClientSession(daemon.url, headers={"x-api-key": key}) as http:
        tasks = [{"prompt": f"[[text=number {number}]]"} for number in range(13)] + [{"prompt": "[[error=400]]"}]
        async with http.post("/v1/batches", json={"tasks": tasks}) as response:
            batch = (await response.json())["id"]
        while True:
            async with http.get(f"/v1/batches/{batch}") as response:
                if (await response.json())["state"] == "finished":
                    break
            await asyncio.sleep(0.05)
    async with ui(browser, daemon, key) as (page, _):
        rows = page.locator("#tasks .task")
        await expect(rows).to_have_count(12)
        await page.get_by_role("button", name="Older").click()
        await expect(rows).to_have_count(2)
        await expect(page.locator("#page")).to_have_text("Page 2")
        await page.get_by_role("button", name="Newer").click()
        await expect(rows).to_have_count(12)
        await page.get_by_label("State", exact=True).select_option("failed")
        await expect(rows).to_have_count(1)
        await page.get_by_label("Kind").select_option("chat")
        await expect(page.locator("#tasks")).to_have_text("Nothing here.")
        bars = page.locator("#usage .chart span:not(.none)")
        await page.get_by_role("button", name="Turns").click()
        await expect(bars).to_have_count(1)
        await expect(page.locator("#usage .chart")).to_have_attribute("aria-label", "Turns by day, at most 14")


# approvals


async def test_a_call_that_waits_is_shown_with_its_diff_and_allowed(
    browser: Browser, workshop: DaemonProcess, repository: Path
) -> None:
    key = (await create(workshop, "operator", role="full"))["key"]
    hello = repository / "hello.txt"
    write = call("Write", file_path=str(hello), content=f"hello\n{HOSTILE}\n")
    async with ui(browser, workshop, key) as (page, _):
        await page.get_by_text("Options").click()
        await page.get_by_label("Tools it may use").fill("Read, Bash(git *)")
        await page.get_by_label("What no rule allows").select_option("ask")
        await page.get_by_label("Directory").fill(str(hello.parent))
        read = call("Read", file_path=str(hello))
        task_id = await run(page, f"[[one-by-one]] {read} {write} [[tokens=2]]")
        asked = page.locator("#transcript .approval")
        await expect(asked.locator(".diff .added")).to_have_text(f"+{HOSTILE}")
        await expect(page.locator(".tool .state")).to_have_text(["done", "waits"])
        await expect(page.locator("#approvals")).to_be_hidden()  # it stands in the transcript
        await page.get_by_role("link", name="All tasks").click()
        strip = page.locator("#approvals")
        await expect(strip).to_contain_text("A call waits for your word")
        assert await page.title() == "(1) claude-daemon"
        assert hello.read_text() == "hello\n"
        await strip.get_by_role("button", name="Allow").click()
        await expect(strip).to_be_hidden()
        await page.goto(f"{workshop.url}/ui#/task/{task_id}")
        await expect(page.locator("#outcome .diff .added")).to_have_text(f"+{HOSTILE}")
        await expect(asked).to_contain_text("Allowed, by key_")
        await expect(page.locator(".tool summary b")).to_have_text(["Read", "Write"])
        await expect(page.locator(".tool .state")).to_have_text(["done", "done"])
        assert hello.read_text() == f"hello\n{HOSTILE}\n"


async def test_a_denial_carries_its_words_and_a_key_without_the_scope_is_told_so(
    browser: Browser, workshop: DaemonProcess
) -> None:
    key = (await create(workshop, "standard"))["key"]
    tools = {"approval": "ask"}
    async with aiohttp.ClientSession(workshop.url, headers={"x-api-key": key}) as http:
        body = {"prompt": f"{call('Bash', command='touch written')} [[tokens=2]]", "tools": tools}
        async with http.post("/v1/tasks", json=body) as response:
            task_id = (await response.json())["id"]
    async with ui(browser, workshop, key) as (page, _):
        strip = page.locator("#approvals")
        await expect(strip.locator(".command")).to_have_text("touch written")
        await strip.get_by_label("Message").fill("not on a Friday")
        await strip.get_by_role("button", name="Deny").click()
        await expect(strip.get_by_role("alert")).to_contain_text("has no scope `approvals`")
        (waiting,) = [one for one in (await workshop.control("approvals"))["data"] if one["task"] == task_id]
        path = f"tasks/{task_id}/approvals/{waiting['approval']}"
        await workshop.control(path, "POST", {"allow": False, "message": "not on a Friday"})
        await expect(strip).to_be_hidden()


async def test_what_a_key_may_not_see_is_told_and_nothing_breaks(browser: Browser, workshop: DaemonProcess) -> None:
    key = (await create(workshop, "narrow", role="narrow"))["key"]
    async with ui(browser, workshop, key) as (page, _):
        for note in ("#tasks-note", "#usage-note"):
            await expect(page.locator(note)).to_contain_text("This key may not see it. The role `narrow` may not use")
        await expect(page.locator("#tiles")).to_contain_text("not this key's to see")
        await expect(page.locator("#checks")).to_contain_text("engine")
        await page.get_by_label("Prompt", exact=True).fill("x")
        await page.get_by_role("button", name="Run").click()
        await expect(page.locator("#compose-note")).to_contain_text("may not use `/v1/tasks`")
        await page.goto(f"{workshop.url}/ui#/task/task_unknown")
        await expect(page.locator("#task-note")).to_contain_text("may not use `/v1/tasks`")


# everybody's


async def test_they_fit_a_narrow_screen_and_everything_has_a_name_and_nothing_moves(
    browser: Browser, daemon: DaemonProcess
) -> None:
    key = (await create(daemon, "narrow-screen"))["key"]
    size = {"width": 360, "height": 740}
    nameless = """[...document.querySelectorAll("button, input, select, textarea, a, [role=img]")].filter((one) =>
        !(one.textContent.trim() || one.labels?.length || one.ariaLabel)).map((one) => one.outerHTML)"""
    moving = "document.getAnimations().filter((one) => one.playState === 'running').length"
    async with ui(browser, daemon, key, viewport=size, reduced_motion="reduce", color_scheme="dark") as (page, _):
        task_id = await run(page, f"[[text={'long' * 99}]]")
        await expect(page.locator(".note.pass")).to_contain_text("Succeeded")
        for where, there in ((f"/ui#/task/{task_id}", "#facts dd"), ("/ui#/", "#tasks .task"), ("/docs", "article")):
            await page.goto(f"{daemon.url}{where}")
            await expect(page.locator(there).first).to_be_visible()
            assert await page.evaluate("document.documentElement.scrollWidth") <= size["width"], where
            assert await page.evaluate(nameless) == []
            assert await page.evaluate(moving) == 0


async def test_the_first_tab_leads_past_the_head_of_the_page(browser: Browser, daemon: DaemonProcess) -> None:
    async with ui(browser, daemon, (await create(daemon, "keyboard"))["key"]) as (page, _):
        await page.reload()
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("Skip to content")).to_be_focused()
        await page.get_by_label("Prompt", exact=True).fill("[[text=by keys]]")
        await page.keyboard.press("Control+Enter")
        await expect(page.locator("#task-title")).to_be_focused()


async def test_every_operation_of_the_document_can_be_read(browser: Browser, daemon: DaemonProcess) -> None:
    async with aiohttp.ClientSession(daemon.url) as http, http.get("/openapi.json") as response:
        document = await response.json()
    wanted = {
        told["operationId"] for path in document["paths"].values() for told in path.values() if "responses" in told
    }
    seen: Seen
    async with opened(browser) as (page, seen):
        await page.goto(f"{daemon.url}/docs#createTask")
        await expect(page.locator("article.operation")).to_have_count(len(wanted))
        assert set(await page.locator("article.operation").evaluate_all("all => all.map((one) => one.id)")) == wanted
        task = page.locator("#createTask")
        await expect(task).to_be_in_viewport()
        for name in document["components"]["schemas"]["TaskRequest"]["properties"]:
            await expect(task.locator(f"code.name:text-is('{name}')").first).to_be_visible()
        await task.get_by_text("429").click()
        await expect(task.get_by_text("queue_full")).to_be_visible()
        await page.get_by_label("Find an operation").fill("batch")
        await expect(page.locator("#index li:visible")).to_have_count(2)
        shapes = page.locator("#schemas > div > details")
        await shapes.evaluate_all("all => all.forEach((one) => { one.open = true; })")
        await expect(page.locator("#schemas > div > details > :nth-child(2)")).to_have_count(
            len(document["components"]["schemas"])
        )
        assert seen.complaints == []
        assert seen.hosts() == {urlsplit(daemon.url).netloc}


async def test_a_daemon_that_cannot_be_reached_is_told_and_found_again(browser: Browser, daemon: DaemonProcess) -> None:
    async with opened(browser) as (page, _):
        await page.goto(f"{daemon.url}/ui")
        await sign_in(page, daemon.key)
        await expect(page.locator("#checks")).to_contain_text("engine")
        await page.context.set_offline(True)
        await expect(page.locator("#state-pill")).to_have_text("Does not answer")
        await expect(page.locator("#tasks-note")).to_have_text("The daemon does not answer.")
        await page.context.set_offline(False)
        await expect(page.locator("#state-pill")).to_have_text(re.compile("Ready|Degraded"))
        await expect(page.locator("#tasks-note")).to_be_hidden()
