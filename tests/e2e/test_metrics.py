"""``/metrics`` of a daemon that works: every family is there, and counts what has happened."""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from claude_daemon.telemetry.metrics import Metrics
from tests.debian import program
from tests.e2e.test_keys import create
from tests.support import BIN, DaemonProcess, sse

Values = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
"""By name and labels."""


class Scraper:
    """Scrapes with a key of its own."""

    def __init__(self, daemon: DaemonProcess, key: str) -> None:
        self._url = f"{daemon.url}/metrics"
        self._headers = {"Authorization": f"Bearer {key}"}

    async def text(self) -> str:
        async with aiohttp.ClientSession() as http, http.get(self._url, headers=self._headers) as response:
            assert response.status == 200, await response.text()
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            return await response.text()

    async def families(self) -> dict[str, Metric]:
        return {family.name: family for family in text_string_to_metric_families(await self.text())}

    async def values(self) -> Values:
        families = (await self.families()).values()
        return {
            (sample.name.removeprefix("claude_daemon_"), frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }


def at(values: Values, name: str, **labels: str) -> float:
    """0 for what has not been counted yet."""
    return values.get((name, frozenset(labels.items())), 0.0)


def grown(before: Values, after: Values, name: str, **labels: str) -> float:
    return at(after, name, **labels) - at(before, name, **labels)


@pytest.fixture
async def scraper(daemon: DaemonProcess) -> AsyncIterator[Scraper]:
    made = await daemon.control("keys", "POST", {"name": "scraper", "role": "full"})
    yield Scraper(daemon, made["key"])
    await daemon.control(f"keys/{made['id']}/revoke", "POST", {})


async def test_every_family_is_there_and_no_other(scraper: Scraper) -> None:
    found = await scraper.families()
    known = {family.name.removesuffix("_total"): family for family in Metrics().families}
    assert set(found) == set(known)
    for name, family in found.items():
        assert (family.type, family.documentation) == (known[name].kind, family.documentation), name
        labels = set(known[name].labels)
        assert {frozenset(sample.labels) - {"le"} for sample in family.samples} <= {frozenset(labels)}, name


async def test_chats_of_both_lanes_and_a_task_are_counted(daemon: DaemonProcess, scraper: Scraper) -> None:
    before = await scraper.values()
    for lane in ("text", "direct"):
        assert (await daemon.chat("Hello", lane=lane)).status == 200
    async with daemon.http.post(
        "/v1/tasks", json={"prompt": "Hello"}, headers={"Accept": "text/event-stream"}
    ) as response:
        told = await sse(response)
    assert told[-1][0] == "task.succeeded"
    assert (await daemon.chat("Hello", model="gpt-4")).status == 404
    after = await scraper.values()

    def more(name: str, **labels: str) -> float:
        return grown(before, after, name, **labels)

    assert more("http_requests_total", route="/v1/messages", method="POST", status="2xx") == 2
    assert more("http_requests_total", route="/v1/messages", method="POST", status="4xx") == 1
    assert more("http_request_seconds_count", route="/v1/messages") == 3
    assert more("refused_total", code="model_not_found") == 1
    for kind, lane in (("chat", "text"), ("chat", "direct"), ("task", "text")):
        assert more("tasks_ended_total", kind=kind, lane=lane, code="ok") == 1, (kind, lane)
    for lane, turns in (("text", 2), ("direct", 1)):
        assert more("turn_seconds_count", lane=lane) == turns
        assert more("first_delta_seconds_count", lane=lane) == turns
        assert (
            0
            < more("first_delta_seconds_sum", lane=lane)
            <= more("turn_seconds_sum", lane=lane)
            + more("queue_wait_seconds_sum", kind="chat")
            + more("queue_wait_seconds_sum", kind="task")
        )
    assert more("queue_wait_seconds_count", kind="chat") == 2
    assert more("upstream_calls_total", lane="direct", outcome="ok") == 1
    assert more("upstream_calls_total", lane="cli", outcome="ok") == 2
    model = next(model for model in models(after) if more("tokens_total", model=model, type="output") > 0)
    assert "sonnet" in model
    assert more("tokens_total", model=model, type="input") > 0
    assert more("events_delivered_total") >= len(told)
    assert more("store_commit_seconds_count") >= 2 and more("store_commit_items_sum") >= 4
    assert sum(value for (name, _), value in after.items() if name == "starts_total") > 0
    assert at(after, "state", state="ready") + at(after, "state", state="degraded") == 1
    assert at(after, "ready") == 1 and at(after, "store_up") == 1
    assert at(after, "cli_turns_limit") == 3 and at(after, "keys", state="active") >= 1
    assert at(after, "process_resident_memory_bytes") > 2**20 and at(after, "process_threads") >= 2
    assert at(after, "disk_free_bytes") > 0


def models(values: Values) -> set[str]:
    return {dict(labels)["model"] for name, labels in values if name == "tokens_total"}


async def test_a_model_without_a_name_here_is_other(daemon: DaemonProcess, scraper: Scraper) -> None:
    before = await scraper.values()
    assert (await daemon.chat("Hello", lane="direct", model="claude-strange-1")).status == 200
    after = await scraper.values()
    assert grown(before, after, "tokens_total", model="other", type="output") > 0
    assert "claude-strange-1" not in await scraper.text()


async def test_backups_keys_and_who_is_connected_are_told(
    daemon: DaemonProcess, scraper: Scraper, tmp_path: Path
) -> None:
    began = time.time()
    answer = await daemon.control("backup", "POST", {"path": str(tmp_path / "copy.db")})
    assert answer["size_bytes"] > 0
    made = await create(daemon, "first-to-expire", expires=began + 60)
    async with daemon.http.ws_connect("/v1/stream", protocols=("claude-daemon.v1",)):
        found = await scraper.values()
    assert int(began) <= at(found, "backup_timestamp_seconds") <= time.time()
    assert at(found, "key_next_expiry_timestamp_seconds") == began + 60
    assert at(found, "websockets") >= 1 and at(found, "http_connections") >= 2
    assert at(found, "http_requests_in_flight") >= 2  # the WebSocket, and this very scrape
    await daemon.control(f"keys/{made['id']}/revoke", "POST", {})


async def test_what_is_refused_over_a_websocket_is_counted_too(daemon: DaemonProcess, scraper: Scraper) -> None:
    before = await scraper.values()
    async with daemon.http.ws_connect("/v1/stream", protocols=("claude-daemon.v1",)) as socket:
        await socket.send_json({"op": "dance"})
        assert (await socket.receive_json())["error"]["code"] == "invalid_request"
        assert at(await scraper.values(), "websockets") >= 1
    after = await scraper.values()
    assert grown(before, after, "refused_total", code="invalid_request") == 1


async def test_what_a_client_writes_makes_no_series(daemon: DaemonProcess, scraper: Scraper) -> None:
    before = await scraper.values()
    for number in range(3):
        async with daemon.http.request("PROPFIND", f"/coffee/{number}") as response:
            assert response.status == 404
    after = await scraper.values()
    assert grown(before, after, "http_requests_total", route="none", method="other", status="4xx") == 3
    text = await scraper.text()
    assert "coffee" not in text and "PROPFIND" not in text


async def test_a_key_without_the_scope_is_told_so(daemon: DaemonProcess) -> None:
    async with daemon.http.get("/metrics") as response:
        assert response.status == 403
        assert (await response.json())["detail"] == "The role `standard without tools` has no scope `metrics`."


async def test_the_exposition_is_as_prometheus_would_have_it(scraper: Scraper) -> None:
    promtool = program("promtool", "prometheus")
    text = await scraper.text()
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_claudectl_shows_them(daemon: DaemonProcess, tmp_path: Path) -> None:
    def claudectl(*args: str) -> str:
        env = {"HOME": str(tmp_path), "CLAUDE_DAEMON_SOCKET": str(daemon.socket), "LANG": "C.UTF-8"}
        return subprocess.run([BIN / "claudectl", *args], env=env, check=True, stdout=subprocess.PIPE, text=True).stdout

    assert claudectl("metrics", "cli_turns_limit") == "claude_daemon_cli_turns_limit 3\n"
    told = claudectl("metrics")
    assert 'claude_daemon_budget_limit_usd{span="day"} +Inf\n' in told
    assert 'claude_daemon_state{state="starting"} 0\n' in told
    assert '"name":"claude_daemon_ready"' in claudectl("metrics", "ready", "--json").replace(" ", "")
