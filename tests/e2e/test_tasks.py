"""Durable tasks over HTTP, on the real CLI: submitted, followed, cancelled, batched, kept across restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest

from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.support import DaemonProcess

PATIENCE_S = 30.0
TERMINAL = ("task.succeeded", "task.failed", "task.cancelled")


async def submit(daemon: DaemonProcess, prompt: str, status: int = 202, **fields: Any) -> dict[str, Any]:
    headers = fields.pop("headers", {})
    async with daemon.http.post("/v1/tasks", json={"prompt": prompt, **fields}, headers=headers) as response:
        body: dict[str, Any] = await response.json(content_type=None)
        assert response.status == status, body
        return body


async def get(daemon: DaemonProcess, path: str, status: int = 200) -> dict[str, Any]:
    async with daemon.http.get(path) as response:
        body: dict[str, Any] = await response.json(content_type=None)
        assert response.status == status, body
        return body


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The events of an SSE answer; of each, ``id:`` and ``event:`` are what its data says."""
    fields: dict[str, str] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line.startswith(":") or line.startswith("retry:"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            event = orjson.loads(fields["data"])
            if fields["event"] != "drain":
                assert (fields["id"], fields["event"]) == (str(event["seq"]), event["type"])
            yield {"type": fields["event"], **event}
            fields = {}


async def follow(daemon: DaemonProcess, task_id: str, after: int = 0) -> list[dict[str, Any]]:
    headers = {"Last-Event-ID": str(after)} if after else {}
    async with asyncio.timeout(PATIENCE_S):
        async with daemon.http.get(f"/v1/tasks/{task_id}/events", headers=headers) as response:
            assert response.status == 200, await response.text()
            return [event async for event in events(response)]


async def finished(daemon: DaemonProcess, task_id: str) -> dict[str, Any]:
    await follow(daemon, task_id)
    return await get(daemon, f"/v1/tasks/{task_id}")


def text_of(told: list[dict[str, Any]]) -> str:
    text = ""
    for event in told:
        if event["type"] == "text.delta":
            text += event["data"]["text"]
        elif event["type"] == "text.reset":
            text = ""
    return text


async def test_a_task_is_accepted_run_and_its_result_kept(daemon: DaemonProcess) -> None:
    task = await submit(daemon, "[[text=Hello there]]", metadata={"for": "a test"}, priority=2)
    assert (task["object"], task["kind"], task["state"], task["lane"]) == ("task", "task", "queued", "text")
    told = await follow(daemon, task["id"])
    assert [event["type"] for event in told][:2] == ["task.queued", "task.started"]
    assert (text_of(told), told[-1]["type"]) == ("Hello there", "task.succeeded")
    assert all(event["task"] == task["id"] for event in told)
    seqs = [event["seq"] for event in told]
    assert seqs == sorted(set(seqs))
    done = await get(daemon, f"/v1/tasks/{task['id']}")
    assert (done["state"], done["attempt"], done["result"]["text"]) == ("succeeded", 1, "Hello there")
    assert done["metadata"] == {"for": "a test"}
    assert done["usage"]["output_tokens"] > 0
    assert (done["last_seq"], done["error"]) == (seqs[-1], None)
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]


async def test_a_submission_may_be_followed_at_once(daemon: DaemonProcess) -> None:
    headers = {"Accept": "text/event-stream"}
    async with daemon.http.post("/v1/tasks", json={"prompt": "[[text=at once]]"}, headers=headers) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Cache-Control"] == "no-store, no-transform"
        assert response.headers["X-Accel-Buffering"] == "no"
        told = [event async for event in events(response)]
    assert response.headers["X-Task-ID"] == told[0]["task"]
    assert (text_of(told), told[-1]["type"]) == ("at once", "task.succeeded")


async def test_a_cursor_leaves_out_what_was_seen(daemon: DaemonProcess) -> None:
    task = await submit(daemon, "[[tokens=30]]")
    told = await follow(daemon, task["id"])
    middle = told[len(told) // 2]["seq"]
    assert await follow(daemon, task["id"], middle) == [event for event in told if event["seq"] > middle]
    async with daemon.http.get(f"/v1/tasks/{task['id']}/events?after={told[-1]['seq']}") as response:
        assert [event async for event in events(response)] == []


async def test_a_follower_that_leaves_comes_back_with_its_cursor(daemon: DaemonProcess) -> None:
    task = await submit(daemon, "[[tokens=60]] [[pace=10ms]]")
    steady = asyncio.create_task(follow(daemon, task["id"]))
    told: list[dict[str, Any]] = []
    while not told or told[-1]["type"] not in TERMINAL:
        after = told[-1]["seq"] if told else 0
        async with daemon.http.get(f"/v1/tasks/{task['id']}/events?after={after}") as response:
            async for event in events(response):
                told.append(event)
                if len(told) % 5 == 0:
                    break  # and the connection with it
    assert told == await steady


async def test_an_idempotency_key_names_one_submission(daemon: DaemonProcess) -> None:
    headers = {"Idempotency-Key": "once"}
    first = await submit(daemon, "[[text=once]]", headers=headers)
    again = await submit(daemon, "[[text=once]]", 200, headers=headers)
    assert again["id"] == first["id"]
    other = await submit(daemon, "[[text=twice]]", 409, headers=headers)
    assert other["code"] == "idempotency_conflict"
    bad = await submit(daemon, "[[text=x]]", 400, headers={"Idempotency-Key": "ü"})
    assert bad["errors"][0]["path"] == "Idempotency-Key"


async def test_what_is_not_known_is_refused_by_name(daemon: DaemonProcess) -> None:
    refused = await submit(daemon, "x", 400, nonsense=1)
    assert (refused["code"], refused["errors"][0]["path"]) == ("unsupported_parameter", "nonsense")


@pytest.mark.parametrize("field", [{"tools": {"allow": ["Read"]}}, {"tools": {"approval": "ask"}}, {"cwd": "/srv"}])
async def test_the_key_of_the_home_has_no_tools_over_the_network(daemon: DaemonProcess, field: dict[str, Any]) -> None:
    refused = await submit(daemon, "x", 403, **field)
    assert refused["code"] == "forbidden"
    assert "The role `standard without tools`" in refused["detail"]


async def test_a_schema_makes_a_structured_result(daemon: DaemonProcess) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    task = await finished(daemon, (await submit(daemon, "give me a number", schema=schema))["id"])
    assert isinstance(task["result"]["structured"]["n"], int)
    assert orjson.loads(task["result"]["text"]) == task["result"]["structured"]


async def test_a_failure_is_data(daemon: DaemonProcess) -> None:
    task = await finished(daemon, (await submit(daemon, "[[error=400]]"))["id"])
    assert (task["state"], task["error"]["code"], task["result"]) == ("failed", "upstream_invalid_request", None)


async def test_a_running_task_is_cancelled(daemon: DaemonProcess, model: OfflineModel) -> None:
    task = await submit(daemon, "[[first=60s]] [[text=never]]")
    async with daemon.http.get(f"/v1/tasks/{task['id']}/events") as response:
        told = events(response)
        while (await anext(told))["type"] != "task.started":
            pass
        async with daemon.http.post(f"/v1/tasks/{task['id']}/cancel") as cancelled:
            body = await cancelled.json()
            assert (cancelled.status, body["cancel_requested_at"] is not None) == (200, True)
        assert (await anext(told))["type"] == "task.cancelled"
    done = await get(daemon, f"/v1/tasks/{task['id']}")
    assert (done["state"], done["error"]["code"]) == ("cancelled", "cancelled")
    async with daemon.http.post(f"/v1/tasks/{task['id']}/cancel") as again:
        assert (again.status, (await again.json())["state"]) == (200, "cancelled")


async def test_a_queued_task_is_cancelled_and_never_runs(start_daemon: StartDaemon, model: OfflineModel) -> None:
    daemon = await start_daemon()
    assert (await daemon.control("queue/pause", "POST"))["paused"] is True
    task = await submit(daemon, "[[text=queued-and-cancelled]]")
    following = asyncio.create_task(follow(daemon, task["id"]))
    async with daemon.http.post(f"/v1/tasks/{task['id']}/cancel") as response:
        assert (await response.json())["state"] == "cancelled"
    assert [event["type"] for event in await following] == ["task.queued", "task.cancelled"]
    await daemon.control("queue/resume", "POST")
    await finished(daemon, (await submit(daemon, "[[text=after]]"))["id"])
    assert not any("queued-and-cancelled" in str(request.body) for request in model.requests)


async def test_a_task_that_is_not_done_in_its_time_ends(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    slow = await finished(daemon, (await submit(daemon, "[[first=60s]] [[text=x]]", timeout_s=0.5))["id"])
    assert (slow["state"], slow["error"]["code"]) == ("failed", "deadline")
    await daemon.control("queue/pause", "POST")
    waiting = await finished(daemon, (await submit(daemon, "[[text=x]]", timeout_s=0.2))["id"])
    assert (waiting["state"], waiting["error"]["code"], waiting["attempt"]) == ("failed", "deadline", 0)


async def test_lists_are_paged_and_filtered(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    ids = [(await submit(daemon, f"[[text={n}]]"))["id"] for n in range(5)]
    for task_id in ids:
        await finished(daemon, task_id)
    await daemon.chat("[[text=chat]]")
    seen: list[str] = []
    path = "/v1/tasks?limit=2"
    while path:
        page = await get(daemon, path)
        seen += [task["id"] for task in page["data"]]
        path = f"/v1/tasks?limit=2&cursor={page['next']}" if page["next"] else ""
    assert seen == ids[::-1]
    assert [t["state"] for t in (await get(daemon, "/v1/tasks?state=succeeded&state=failed"))["data"]] == [
        "succeeded"
    ] * 5
    assert (await get(daemon, "/v1/tasks?state=queued"))["data"] == []
    for bad in ("limit=0", "state=gone", "cursor=nonsense", "kind=what"):
        assert (await get(daemon, f"/v1/tasks?{bad}", 400))["errors"][0]["path"] == bad.partition("=")[0]
    misspelt = await get(daemon, "/v1/tasks?sate=failed", 400)
    assert (misspelt["code"], misspelt["errors"][0]["path"]) == ("unsupported_parameter", "sate")
    assert "`state`" in misspelt["detail"]


async def test_a_chat_leaves_who_and_how_much_and_not_a_word(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    response = await daemon.chat("[[text=do-not-keep-this]]")
    task_id = response.headers["X-Task-ID"]
    async with asyncio.timeout(PATIENCE_S):
        while not (page := await get(daemon, "/v1/tasks?kind=chat"))["data"]:
            await asyncio.sleep(0.01)
    (chat,) = page["data"]
    assert (chat["id"], chat["kind"], chat["state"], chat["result"]) == (task_id, "chat", "succeeded", None)
    assert chat["usage"]["output_tokens"] > 0
    assert (await get(daemon, f"/v1/tasks/{task_id}/events", 409))["code"] == "conflict"
    assert await daemon.stop() == 0
    for file in (daemon.home / ".claude-daemon").glob("daemon.db*"):
        assert b"do-not-keep-this" not in file.read_bytes()


async def test_a_batch_tells_of_each_of_its_tasks(daemon: DaemonProcess) -> None:
    tasks = [{"prompt": "[[text=one]]"}, {"prompt": "x", "cwd": "/"}, {"prompt": "[[error=400]]"}, {"nonsense": 1}]
    async with daemon.http.post("/v1/batches", json={"tasks": tasks}) as response:
        batch = await response.json()
        assert response.status == 202, batch
    assert [row["state"] == "refused" for row in batch["tasks"]] == [False, True, False, True]
    assert [batch["tasks"][n]["error"]["code"] for n in (1, 3)] == ["forbidden", "unsupported_parameter"]
    for row in batch["tasks"]:
        if row["id"]:
            await finished(daemon, row["id"])
    done = await get(daemon, f"/v1/batches/{batch['id']}")
    assert (done["state"], [row["state"] for row in done["tasks"]]) == (
        "finished",
        ["succeeded", "refused", "failed", "refused"],
    )
    assert done["counts"]["succeeded"] == done["counts"]["failed"] == 1
    assert done["counts"]["refused"] == 2


@pytest.mark.parametrize("path", ["/v1/tasks/task_x", "/v1/tasks/task_x/events", "/v1/batches/batch_x"])
async def test_what_is_not_there_is_404(daemon: DaemonProcess, path: str) -> None:
    assert (await get(daemon, path, 404))["code"] == "not_found"


async def test_what_was_accepted_survives_a_kill_and_is_run(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    running = await submit(daemon, "[[tokens=40]] [[pace=50ms]]")
    waiting = await submit(daemon, "[[text=waited]]")
    async with daemon.http.get(f"/v1/tasks/{running['id']}/events") as response:
        before = []
        async for event in events(response):
            before.append(event)
            if event["type"] == "text.delta":
                break
    await daemon.stop(number=9)  # type: ignore[arg-type]
    again = await start_daemon(home=daemon.home)
    told = await follow(again, running["id"], before[-1]["seq"])
    kinds = [event["type"] for event in told]
    assert "task.requeued" in kinds
    assert kinds.index("task.requeued") < kinds.index("text.reset") < kinds.index("task.succeeded")
    assert min(event["seq"] for event in told) > before[-1]["seq"]
    done = await finished(again, running["id"])
    assert (done["state"], done["attempt"], done["result"]["text"]) == ("succeeded", 2, text_of(told))
    assert (await finished(again, waiting["id"]))["result"]["text"] == "waited"


async def test_a_stop_puts_what_runs_back_and_the_next_start_runs_it(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"drain.deadline_s": 0.2})
    task = await submit(daemon, "[[first=60s]] [[times=1]] [[text=at last]]")
    stream = await daemon.http.get(f"/v1/tasks/{task['id']}/events")
    told = events(stream)
    while (await anext(told))["type"] != "task.started":
        pass
    assert daemon.process is not None
    daemon.process.terminate()
    rest = [event async for event in told]
    stream.close()
    assert [event["type"] for event in rest][-2:] == ["task.requeued", "drain"]
    assert rest[-1]["cursor"] == rest[-2]["seq"]
    assert await daemon.ended() == 0
    again = await start_daemon({"engine.stall_timeout_s": 20}, home=daemon.home)
    state = await get(again, f"/v1/tasks/{task['id']}")
    assert state["state"] in ("queued", "running", "succeeded")
    async with again.http.post(f"/v1/tasks/{task['id']}/cancel"):
        pass


async def test_a_task_that_takes_the_daemon_down_each_time_is_not_run_for_ever(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"queue.max_attempts": 2})
    task = await submit(daemon, "[[first=60s]] [[text=x]]")
    for attempt in (1, 2):
        async with asyncio.timeout(PATIENCE_S):
            while (await get(daemon, f"/v1/tasks/{task['id']}"))["attempt"] < attempt:
                await asyncio.sleep(0.02)
        await daemon.stop(number=9)  # type: ignore[arg-type]
        daemon = await start_daemon({"queue.max_attempts": 2}, home=daemon.home)
    done = await finished(daemon, task["id"])
    assert (done["state"], done["error"]["code"], done["attempt"]) == ("failed", "interrupted", 2)


async def test_a_full_queue_is_told(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"queue.max_queued_per_key": 1})
    await daemon.control("queue/pause", "POST")
    await submit(daemon, "first")
    async with daemon.http.post("/v1/tasks", json={"prompt": "second"}) as response:
        assert (response.status, (await response.json(content_type=None))["code"]) == (429, "queue_full")
        assert int(response.headers["Retry-After"]) > 0
