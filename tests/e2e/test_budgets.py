"""Budgets and rate limits on the real daemon, as its clients meet them, and over a ``kill -9``."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from claude_daemon.core.price import Price, cost_micro_usd
from claude_daemon.core.task import Usage
from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.e2e.agents import Agents, call, ended
from tests.e2e.sdk import anthropic_sdk, both_lanes, openai_sdk, user
from tests.e2e.test_agent_limits import BASH, PRICES, killed
from tests.e2e.test_engine_requests import asked_with
from tests.support import DaemonProcess

PATIENCE_S = 60.0
_POLL_S = 0.02
PRICED = {"CLAUDE_DAEMON_PRICES": '{"sonnet": {"input": 3.0, "output": 15.0, "cache_write": 3.75, "cache_read": 0.3}}'}
PRICE = Price(input=3_000_000, output=15_000_000, cache_write=3_750_000, cache_read=300_000)
FOR_THREE: dict[str, Any] = {"budget.usd_per_day": 3, "budget.reserve_usd_per_turn": 1, "engine.workers": 3}


async def at_once(daemon: DaemonProcess, prompt: str, count: int, lane: str = "direct") -> list[aiohttp.ClientResponse]:
    return list(await asyncio.gather(*(daemon.chat(f"{prompt} no. {n}", lane=lane) for n in range(count))))


async def usage(daemon: DaemonProcess, by: str = "day") -> dict[str, Any]:
    document: dict[str, Any] = await daemon.control(f"usage?by={by}")
    return document


async def written(daemon: DaemonProcess, reservations: int) -> None:
    """Waits until the store has so many: from then on a kill leaves them behind."""
    with closing(sqlite3.connect(daemon.home / ".claude-daemon" / "daemon.db")) as db:
        async with asyncio.timeout(PATIENCE_S):
            while db.execute("SELECT count(*) FROM reservations").fetchone()[0] != reservations:
                await asyncio.sleep(_POLL_S)


async def over(daemon: DaemonProcess, tasks: int, by: str = "day") -> dict[str, Any]:
    """The usage once so many have ended and the ledger, for which no answer waits, has all of them."""
    async with asyncio.timeout(PATIENCE_S):
        while (found := await usage(daemon, by))["total"]["tasks"] != tasks or found["budgets"][0]["reserved_usd"]:
            await asyncio.sleep(_POLL_S)
        return found


def cost(told: dict[str, Any]) -> int:
    """In micro-USD, of a message's usage."""
    counts = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return cost_micro_usd(Usage(**{name: told.get(name) or 0 for name in counts}), PRICE)


@both_lanes
async def test_of_twenty_requests_at_once_a_budget_for_three_takes_three(
    start_daemon: StartDaemon, model: OfflineModel, lane: str
) -> None:
    daemon = await start_daemon(FOR_THREE, environ=PRICED)
    answers = await at_once(daemon, f"twenty-{lane} [[tokens=3]] [[first=1s]]", 20, lane)
    assert sorted(answer.status for answer in answers) == [200] * 3 + [402] * 17
    assert len(asked_with(model, f"twenty-{lane}")) == 3
    spent = sum([cost((await answer.json())["usage"]) for answer in answers if answer.status == 200])
    found = await over(daemon, 3, "key")
    assert found["total"]["charged_usd"] == found["total"]["cost_usd"] == pytest.approx(spent / 1e6)
    assert [(row["key_id"], row["name"], row["tasks"]) for row in found["data"]] == [("local", "local", 3)]
    assert (await daemon.chat("there is room again [[tokens=1]]", lane=lane)).status == 200


async def test_a_spent_budget_is_told_as_each_sdk_knows_it_and_is_not_tried_again(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"budget.usd_per_month": 0})
    async with openai_sdk(daemon, "direct", max_retries=3) as sdk:
        with pytest.raises(openai.RateLimitError) as told:
            await sdk.chat.completions.create(model="sonnet", messages=user("openai"))
    assert (told.value.code, told.value.type) == ("insufficient_quota", "insufficient_quota")
    assert told.value.response.headers["x-should-retry"] == "false"
    async with anthropic_sdk(daemon, "direct", max_retries=3) as other:
        with pytest.raises(anthropic.APIStatusError) as refused:
            await other.messages.create(model="sonnet", max_tokens=9, messages=user("anthropic"))
    assert refused.value.status_code == 402
    async with daemon.http.post("/v1/tasks", json={"prompt": "x"}) as response:
        assert (response.status, (await response.json())["code"]) == (402, "budget_exhausted")
    await daemon.logged("http.access", path="/v1/tasks", status=402)
    told_so = [line for line in daemon.log() if line["event"] == "http.access" and line["status"] in (402, 429)]
    assert len(told_so) == 3, "each was sent once"


async def test_after_a_kill_what_was_under_way_is_charged_as_it_was_set_aside(
    start_daemon: StartDaemon, model: OfflineModel
) -> None:
    daemon = await start_daemon({**FOR_THREE, "engine.stall_timeout_s": 60}, environ=PRICED)
    over = await daemon.chat("before the kill [[tokens=2]]", lane="direct")
    spent = cost((await over.json())["usage"])
    hanging = [asyncio.ensure_future(daemon.chat(f"kill-me {n} [[hang]]", lane="direct")) for n in range(2)]
    await written(daemon, 2)
    assert (await daemon.chat("a third, which takes what is left [[tokens=1]]", lane="direct")).status == 200
    async with asyncio.timeout(PATIENCE_S):
        while (found := await usage(daemon))["total"]["tasks"] != 2:
            await asyncio.sleep(_POLL_S)
    before = found["total"]["charged_usd"]
    await killed(daemon)
    for chat in hanging:
        with pytest.raises(aiohttp.ClientError):
            await chat
    await daemon.logged("budget.left_behind", chats=2)
    found = await usage(daemon)
    assert found["total"]["charged_usd"] == pytest.approx(before + 2)
    assert before > spent / 1e6
    assert found["budgets"][0]["reserved_usd"] == 0
    assert found["budgets"][0]["day"]["spent_usd"] == pytest.approx(before + 2)


async def test_a_task_keeps_what_it_has_set_aside_over_a_kill_and_is_charged_once(
    start_daemon: StartDaemon, model: OfflineModel
) -> None:
    daemon = await start_daemon({**FOR_THREE, "engine.stall_timeout_s": 60}, environ=PRICED)
    async with daemon.http.post("/v1/tasks", json={"prompt": "kept-aside [[tokens=3]] [[first=2s]]"}) as response:
        task_id = (await response.json())["id"]
    async with asyncio.timeout(PATIENCE_S):
        while not asked_with(model, "kept-aside"):
            await asyncio.sleep(_POLL_S)
    await killed(daemon)
    assert (await usage(daemon))["budgets"][0]["reserved_usd"] == 1
    task, _ = await ended(daemon, task_id)
    assert task["state"] == "succeeded"
    found = await over(daemon, 1)
    assert found["total"]["charged_usd"] == pytest.approx(found["budgets"][0]["day"]["spent_usd"])
    assert found["total"]["charged_usd"] >= task["cost_usd"] > 0


@pytest.mark.parametrize("kind", ["absent", "negative", "absurd"])
@both_lanes
async def test_usage_that_cannot_be_is_charged_as_it_was_set_aside_and_told(
    start_daemon: StartDaemon, kind: str, lane: str
) -> None:
    daemon = await start_daemon(FOR_THREE, environ=PRICED)
    answer = await daemon.chat(f"doubtful [[usage={kind}]] [[tokens=3]]", lane=lane)
    assert answer.status == 200
    told = await daemon.logged("budget.reservation_charged")
    assert told["level"] == "warning"
    assert (await over(daemon, 1))["total"]["charged_usd"] == 1


async def test_a_model_without_a_price_is_charged_as_it_was_set_aside_and_told(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(FOR_THREE)
    for n in range(3):
        assert (await daemon.chat(f"unpriced {n} [[tokens=1]]", lane="direct", model="claude-unheard-of")).status == 200
    assert (await daemon.chat("unpriced, one too many", lane="direct", model="claude-unheard-of")).status == 402
    assert (await daemon.logged("budget.reservation_charged"))["reason"] == "the model has no price"
    assert (await daemon.logged("budget.warn"))["purse"] == "all"
    found = await over(daemon, 3)
    assert (found["total"]["charged_usd"], found["total"]["cost_usd"], found["total"]["unpriced"]) == (3, 0, 3)
    health = await daemon.control("health")
    assert (health["checks"]["budgets"]["status"], health["checks"]["budgets"]["spent"]) == ("fail", 1)


async def test_a_key_has_a_budget_of_its_own_and_sees_its_own_usage(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"budget.reserve_usd_per_turn": 1})
    made = await daemon.control("keys", "POST", {"name": "alice", "budget_usd_day": 1.5, "budget_usd_month": 10})
    assert (made["budget_usd_day"], made["budget_usd_month"]) == (1.5, 10)
    (listed,) = (await daemon.control("keys"))["keys"]
    assert listed["budget_usd_day"] == 1.5
    assert await daemon.stop() == 0
    await daemon.start()
    headers = {"Authorization": f"Bearer {made['key']}"}
    # without a price, so that what was set aside is charged
    asked = {"model": "claude-unheard-of", "max_tokens": 9, "messages": user("of alice [[tokens=1]]")}
    statuses = []
    async with aiohttp.ClientSession(daemon.url, headers=headers) as alice:
        for _ in range(3):
            async with alice.post("/v1/messages", json=asked) as response:
                statuses.append(response.status)
        await over(daemon, 2)
        async with alice.get("/v1/usage?by=model&days=1") as response:
            mine = await response.json()
        async with alice.get("/v1/usage?by=hour") as response:
            assert (response.status, (await response.json())["errors"][0]["path"]) == (400, "by")
    assert statuses == [200, 200, 402]
    assert [row["tasks"] for row in mine["data"]] == [2]
    (budget,) = mine["budgets"]
    assert (budget["purse"], budget["name"], budget["day"]["limit_usd"]) == ("key", made["id"], 1.5)
    assert budget["day"]["spent_usd"] == 1.5
    assert (await daemon.chat("of local [[tokens=1]]", lane="direct")).status == 200
    await over(daemon, 3)
    async with daemon.http.get("/v1/usage") as response:
        assert (await response.json())["total"]["tasks"] == 1
    everybody = await usage(daemon, "key")
    assert {row["name"]: row["tasks"] for row in everybody["data"]} == {"alice": 2, "local": 1}
    assert [budget["purse"] for budget in everybody["budgets"]] == ["all", "key"]


async def test_of_twenty_agents_none_makes_a_model_call_after_the_budget_is_spent(
    agents: Agents, repository: Path, model: OfflineModel
) -> None:
    """Every call costs some dollars, which is more than what three tasks set aside together."""
    daemon = await agents({"budget.usd_per_day": 0.03, "budget.reserve_usd_per_turn": 0.01}, toml=PRICES)
    prompt = f"twenty-agents {call('Bash', command='true')} [[repeat=5]] [[tokens=1]]"

    async def submit(n: int) -> dict[str, Any]:
        body = {"prompt": f"{prompt} no. {n}", "tools": BASH, "cwd": str(repository)}
        answer: dict[str, Any] = await daemon.control("tasks?detach=true", "POST", body)
        return answer

    answers = await asyncio.gather(*(submit(n) for n in range(20)))
    taken = [answer["id"] for answer in answers if "id" in answer]
    assert len(taken) == 3
    assert {answer["code"] for answer in answers if "id" not in answer} == {"budget_exhausted"}
    tasks = [(await ended(daemon, task_id))[0] for task_id in taken]
    assert {(task["state"], task["error"]["code"]) for task in tasks} == {("failed", "budget_exhausted")}
    # two run at once, each with a call under way when the first one is metered; the third makes none
    assert 1 <= len(asked_with(model, "twenty-agents")) <= 2
    assert sum(task["usage"]["model_calls"] for task in tasks) == len(asked_with(model, "twenty-agents"))


async def test_a_budget_that_is_spent_meanwhile_ends_the_turn_at_its_next_model_call(
    agents: Agents, repository: Path, model: OfflineModel
) -> None:
    daemon = await agents({"budget.usd_per_day": 300, "budget.reserve_usd_per_turn": 0.01}, toml=PRICES)
    prompt = f"meanwhile {call('Bash', command='true')} [[repeat=400]] [[tokens=1]]"
    task = await daemon.control("tasks?detach=true", "POST", {"prompt": prompt, "tools": BASH, "cwd": str(repository)})
    task, _ = await ended(daemon, task["id"])
    assert (task["state"], task["error"]["code"]) == ("failed", "budget_exhausted"), task
    calls = len(asked_with(model, "meanwhile"))
    assert calls == task["usage"]["model_calls"] > 1
    assert task["cost_usd"] >= 300, "it stopped before it had to"
    assert task["cost_usd"] * (calls - 1) / calls < 300 * 1.5


async def test_rate_limits_are_told_as_each_sdk_reads_them(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"limits.requests_per_minute": 3, "limits.tokens_per_minute": 100_000})
    async with openai_sdk(daemon, "direct") as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(model="sonnet", messages=user("a [[tokens=1]]"))
        assert raw.headers["x-ratelimit-limit-requests"] == "3"
        assert raw.headers["x-ratelimit-remaining-requests"] == "2"
        assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
        assert raw.headers["x-ratelimit-limit-tokens"] == "100000"
    async with anthropic_sdk(daemon, "text") as other:
        answer = await other.messages.with_raw_response.create(
            model="sonnet", max_tokens=9, messages=user("b [[tokens=1]]")
        )
        assert answer.headers["anthropic-ratelimit-requests-remaining"] == "1"
        assert answer.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
        assert answer.headers["anthropic-ratelimit-tokens-limit"] == "100000"
        await other.messages.count_tokens(model="sonnet", messages=user("c"))
        with pytest.raises(anthropic.RateLimitError) as refused:
            await other.messages.create(model="sonnet", max_tokens=9, messages=user("d"))
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 20
    assert refused.value.response.headers["anthropic-ratelimit-requests-remaining"] == "0"
    async with openai_sdk(daemon, "direct") as sdk:
        with pytest.raises(openai.RateLimitError) as told:
            await sdk.chat.completions.create(model="sonnet", messages=user("e"))
    assert told.value.code == "rate_limited"
    assert told.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    async with daemon.http.post("/v1/tasks", json={"prompt": "f"}) as response:
        assert (response.status, "Retry-After" in response.headers) == (429, True)


async def test_turns_at_once_are_bounded_chats_are_told_and_tasks_wait(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"limits.concurrent": 1, "engine.workers": 2, "engine.stall_timeout_s": 60})
    chat = asyncio.ensure_future(daemon.chat("the one [[tokens=3]] [[first=2s]]", lane="direct"))
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("status"))["queue"]["running"] < 1:
            await asyncio.sleep(_POLL_S)
    assert (await daemon.chat("one too many", lane="direct")).status == 429
    async with daemon.http.post("/v1/tasks", json={"prompt": "it waits [[tokens=1]]"}) as response:
        task_id = (await response.json())["id"]
    assert (await chat).status == 200
    task, _ = await ended(daemon, task_id)
    log = daemon.log()
    order = [line["request_id"] for line in log if line["event"] == "task.settled"]
    assert task["state"] == "succeeded" and len(order) == 2
    assert task["started_at"] - task["created_at"] > 0.5
