"""Who may ask, what is refused, what is kept, and how the server lives."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson
import pytest

from claude_daemon.offline import OfflineModel, Settings
from claude_daemon.offline.app import MAX_BODY_BYTES
from claude_daemon.offline.lru import Lru
from claude_daemon.offline.requestlog import Recorded, RequestLog
from tests.offline.conftest import Caller, request

USER = {"role": "user", "content": "hi"}
CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "A", "input": {}}]}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "ok"}]}
REMOTE_SCHEMA = {"format": {"type": "json_schema", "schema": {"$ref": "https://example.com"}}}
TOOL = {"name": "A", "input_schema": {"type": "object"}}


def _say(body: dict[str, Any], block: Any) -> None:
    """Replace what the user says by one block."""
    body["messages"][0]["content"] = [block]


async def _error(response: aiohttp.ClientResponse) -> tuple[int, str, str]:
    """Status, type and message of an error in the API's shape."""
    body = orjson.loads(await response.read())
    assert body["type"] == "error"
    assert body["request_id"] == response.headers["request-id"]
    assert body["request_id"].startswith("req_")
    return response.status, body["error"]["type"], body["error"]["message"]


async def _refusal(caller: Caller, body: Any, path: str = "/v1/messages") -> tuple[int, str, str]:
    async with caller.post(body, path) as response:
        return await _error(response)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
async def test_a_host_of_this_machine_is_let_in(model: OfflineModel, caller: Caller, name: str) -> None:
    host = f"{name}:{model.base_url.rpartition(':')[2]}"
    async with caller.http.get(model.base_url + "/v1/models", headers={"host": host}) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{}", "127.0.0.2:{}"]
)
async def test_any_other_host_is_refused(model: OfflineModel, caller: Caller, host: str) -> None:
    headers = {"host": host.format(model.base_url.rpartition(":")[2])}
    async with caller.http.get(model.base_url + "/v1/models", headers=headers) as response:
        assert (await _error(response))[:2] == (403, "permission_error")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": "sk-wrong"},
        {"authorization": "Bearer sk-wrong"},
        {"authorization": "Basic {}"},
        {"x-api-key": "ключ"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/models", "/offline/requests", "/nothing"])
async def test_without_the_key_every_route_is_closed(model: OfflineModel, headers: dict[str, str], path: str) -> None:
    filled = {name: value.format(model.api_key) for name, value in headers.items()}
    async with aiohttp.ClientSession(headers=filled) as http, http.get(model.base_url + path) as response:
        assert (await _error(response))[:2] == (401, "authentication_error")


async def test_an_unknown_route_and_a_wrong_method_are_errors_of_the_api(model: OfflineModel, caller: Caller) -> None:
    assert (await _refusal(caller, {}, "/v1/nothing"))[:2] == (404, "not_found_error")
    async with caller.http.get(model.base_url + "/v1/messages") as response:
        assert (await _error(response))[:2] == (405, "invalid_request_error")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda body: body.pop("model"), "model"),
        (lambda body: body.update(model=5), "model"),
        (lambda body: body.pop("max_tokens"), "max_tokens"),
        (lambda body: body.update(max_tokens=0), "max_tokens"),
        (lambda body: body.update(max_tokens="9"), "max_tokens"),
        (lambda body: body.update(max_tokens=True), "max_tokens"),
        (lambda body: body.update(stream="yes"), "stream"),
        (lambda body: body.update(temperature=1.5), "temperature"),
        (lambda body: body.update(top_p="1"), "top_p"),
        (lambda body: body.update(stop_sequences=[" "]), "stop_sequences"),
        (lambda body: body.update(stop_sequences="x"), "stop_sequences"),
        (lambda body: body.update(system=5), "system"),
        (lambda body: body.update(system=[{"type": "image"}]), "system.0.type"),
        (lambda body: body.update(system=[{"type": "text", "text": ""}]), "system.0.text"),
        (lambda body: body.pop("messages"), "messages"),
        (lambda body: body.update(messages={}), "messages"),
        (lambda body: body.update(messages=[]), "messages"),
        (lambda body: body.update(messages=["hi"]), "messages.0"),
        (lambda body: body.update(messages=[{"role": "tool", "content": "x"}]), "messages.0.role"),
        (lambda body: body.update(messages=[{"role": "assistant", "content": "x"}]), "messages.0.role"),
        (lambda body: body.update(messages=[{"role": "system", "content": "x"}]), "messages.0.role"),
        (lambda body: body.update(messages=[{"role": "user"}]), "messages.0.content"),
        (lambda body: body.update(messages=[{"role": "user", "content": 5}]), "messages.0.content"),
        (lambda body: body.update(messages=[{"role": "user", "content": ""}]), "messages.0.content"),
        (lambda body: body.update(messages=[{"role": "user", "content": []}]), "messages.0.content"),
        (lambda body: _say(body, "x"), "messages.0.content.0"),
        (lambda body: _say(body, {"text": "x"}), "messages.0.content.0.type"),
        (lambda body: _say(body, {"type": "text", "text": ""}), "messages.0.content.0.text"),
        (lambda body: _say(body, {"type": "text"}), "messages.0.content.0.text"),
        (lambda body: _say(body, {"type": "image"}), "messages.0.content.0.image.source"),
        (lambda body: body.update(messages=[USER, CALL, USER]), "messages"),
        (lambda body: body.update(messages=[USER, CALL, USER, CALL, RESULT]), "messages"),
        (lambda body: body.update(messages=[RESULT]), "messages"),
        (lambda body: body.update(tools={}), "tools"),
        (lambda body: body.update(tools=["A"]), "tools.0"),
        (lambda body: body.update(tools=[{"name": "a b"}]), "tools.0.name"),
        (lambda body: body.update(tools=[{"name": "A"}]), "tools.0.input_schema"),
        (lambda body: body.update(tools=[{"name": "A", "input_schema": {}}]), "tools.0.input_schema.type"),
        (lambda body: body.update(tools=[TOOL, TOOL]), "tools"),
        (lambda body: body.update(tool_choice={"type": "any"}), "tool_choice"),
        (lambda body: body.update(tool_choice="auto"), "tool_choice.type"),
        (lambda body: body.update(tool_choice={"type": "tool", "name": "B"}), "tool_choice.name"),
        (lambda body: body.update(thinking={"type": "on"}), "thinking.type"),
        (lambda body: body.update(thinking={"type": "enabled"}), "thinking.enabled.budget_tokens"),
        (lambda body: body.update(thinking={"type": "enabled", "budget_tokens": 4096}), "max_tokens"),
        (lambda body: _say(body, {"type": "text", "text": "[[tokens=x]]"}), "messages"),
        (lambda body: body.update(output_config=REMOTE_SCHEMA), "output_config.format.schema"),
    ],
)  # fmt: skip
async def test_a_bad_request_is_refused_with_the_field_in_the_message(
    caller: Caller, change: Callable[[dict[str, Any]], Any], named: str
) -> None:
    body = request([{"role": "user", "content": "hi"}])
    change(body)
    status, kind, message = await _refusal(caller, body)
    assert (status, kind) == (400, "invalid_request_error")
    assert message.startswith(f"{named}: ")


async def test_a_conversation_that_the_cli_sends_is_accepted(caller: Caller) -> None:
    server_tool = {"type": "web_search_20250305", "name": "web_search"}
    messages = [USER, {"role": "system", "content": []}, CALL, RESULT, {"role": "assistant", "content": ""}]
    async with caller.post(request(messages, tools=[TOOL, server_tool], system=[])) as response:
        assert response.status == 200


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b'{"a":"\\ud800"}', b"[" * 100_000])
async def test_what_is_not_json_is_refused(model: OfflineModel, caller: Caller, raw: bytes) -> None:
    async with caller.http.post(model.base_url + "/v1/messages", data=raw) as response:
        assert (await _error(response))[:2] == (400, "invalid_request_error")


@pytest.mark.parametrize("depth", [60, 200, 480])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_body_nested_deeply_is_answered_or_refused_but_breaks_nothing(
    model: OfflineModel, caller: Caller, path: str, depth: int
) -> None:
    nested = '[{"type":"tool_result","tool_use_id":"t","content":' * depth + '"x"' + "}]" * depth
    result = b'{"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":%b}]}' % nested.encode()
    messages = b"[%b,%b,%b]" % (orjson.dumps(USER), orjson.dumps(CALL), result)
    schema = '{"type":"object","required":["a"],"properties":{"a":' * depth + "{}" + "}}" * depth
    tools = b'[{"name":"A","input_schema":%b}]' % schema.encode()
    for members in (b'"messages":%b' % messages, b'"messages":[%b],"tools":%b' % (orjson.dumps(USER), tools)):
        body = b'{"model":"m","max_tokens":9,"tool_choice":{"type":"auto"},%b}' % members
        async with caller.http.post(model.base_url + path, data=body) as response:
            assert response.status in (200, 400), await response.text()


async def test_a_failure_of_its_own_is_an_error_of_the_api() -> None:
    told: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = told.append  # type: ignore[method-assign, assignment]
    logging.getLogger().addHandler(handler)

    def ids(prefix: str) -> str:
        if prefix == "msg":
            raise LookupError("out of ids")
        return f"{prefix}_1"

    key = "sk-offline"
    async with (
        OfflineModel(ids=ids, api_key=key) as model,
        aiohttp.ClientSession(headers={"x-api-key": key}) as http,
    ):
        refusal = await _refusal(Caller(http=http, base_url=model.base_url), request("hi"))
    assert refusal == (500, "api_error", "Internal server error")
    logging.getLogger().removeHandler(handler)
    assert any(record.exc_info and "out of ids" in str(record.exc_info[1]) for record in told)


async def test_a_body_too_large_is_refused_before_it_is_read(model: OfflineModel) -> None:
    host, _, port = model.base_url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/messages HTTP/1.1\r\nhost: {host}:{port}\r\nx-api-key: {model.api_key}\r\n"
    writer.write(f"{head}content-length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode())
    assert b" 413 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_requests_are_recorded_as_they_came_even_when_refused(model: OfflineModel, caller: Caller) -> None:
    body = request("hi")
    async with caller.post(body, "/v1/messages?beta=true"):
        pass
    async with caller.http.get(model.base_url + "/v1/models", headers={"x-api-key": "wrong"}):
        pass
    async with caller.http.post(model.base_url + "/nothing", data=b"{"):
        pass
    first, second, third = model.requests
    assert (first.method, first.path, first.body) == ("POST", "/v1/messages?beta=true", body)
    assert first.headers["x-api-key"] == model.api_key
    assert first.headers["content-type"] == "application/json"
    assert (second.method, second.path, second.body) == ("GET", "/v1/models", None)
    assert (third.path, third.body) == ("/nothing", None)
    assert model.api_key not in repr(first)


async def test_a_hung_request_is_recorded_at_its_arrival(model: OfflineModel, caller: Caller) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(caller.text("[[hang]]"))
        await model.wait_until(lambda model: len(model.requests) == 1)
        assert model.active == 1
        task.cancel()
    await model.wait_until(lambda model: not model.active)


async def test_nothing_is_recorded_unless_asked_for() -> None:
    async with OfflineModel() as model, aiohttp.ClientSession(headers={"x-api-key": model.api_key}) as http:
        await Caller(http=http, base_url=model.base_url).text("hi")
        assert model.requests == []


def test_the_log_keeps_the_newest_requests_only() -> None:
    log = RequestLog(enabled=True, limit=2)
    for path in ("/1", "/2", "/3"):
        log.add(Recorded(method="GET", path=path, headers={}, body=None))
    assert [entry.path for entry in log.entries] == ["/2", "/3"]


def test_a_memory_forgets_what_was_not_used_longest() -> None:
    memory: Lru[str, int] = Lru(2)
    memory.put("a", 1)
    memory.put("b", 2)
    assert memory.get("a") == 1
    memory.put("c", 3)
    assert (memory.get("a"), memory.get("b"), memory.get("c"), len(memory)) == (1, None, 3, 2)


async def test_settings_are_read_and_replaced_over_http(model: OfflineModel, caller: Caller) -> None:
    url = model.base_url + "/offline/settings"
    async with caller.http.get(url) as response:
        assert Settings.from_json(await response.json()) == Settings()
    async with caller.http.put(url, json={"tokens": 3, "fault": {"kind": "cut", "after": 1}}) as response:
        assert (await response.json())["tokens"] == 3
    assert model.settings == Settings.from_json({"tokens": 3, "fault": {"kind": "cut", "after": 1}})
    async with caller.http.put(url, json={"tokens": 0}) as response:
        assert (await _error(response))[2].startswith("tokens: ")
    assert model.settings.tokens == 3
    async with caller.http.put(url, json={}) as response:
        assert response.status == 200
    assert model.settings == Settings()
    assert model.requests == []


async def test_requests_are_read_and_forgotten_over_http(model: OfflineModel, caller: Caller) -> None:
    await caller.text("hi")
    url = model.base_url + "/offline/requests"
    async with caller.http.get(url) as response:
        told = await response.json()
    assert told["recording"] is True
    assert [(entry["path"], entry["body"]) for entry in told["requests"]] == [("/v1/messages", request("hi"))]
    async with caller.http.delete(url) as response:
        assert response.status == 200
    assert model.requests == []


async def test_two_models_have_ports_and_keys_of_their_own() -> None:
    async with OfflineModel() as one, OfflineModel() as other:
        assert one.base_url != other.base_url
        assert one.api_key != other.api_key
        assert one.api_key.startswith("sk-offline-")


async def test_a_model_starts_again_on_its_port_with_its_key() -> None:
    async with OfflineModel(api_key="k") as model:
        url = model.base_url
    again = OfflineModel(port=int(url.rpartition(":")[2]), api_key="k")
    for _ in range(2):
        async with again, aiohttp.ClientSession(headers={"x-api-key": "k"}) as http:
            assert again.base_url == url
            assert await Caller(http=http, base_url=url).text("hi")


async def test_a_model_that_is_not_started_has_no_url() -> None:
    model = OfflineModel()
    with pytest.raises(RuntimeError, match="not started"):
        _ = model.base_url
    assert repr(model) == "<OfflineModel not listening active=0>"
    await model.stop()


async def test_a_model_starts_once_and_its_key_is_in_no_repr(model: OfflineModel) -> None:
    with pytest.raises(RuntimeError, match="already started"):
        await model.start()
    assert model.api_key not in repr(model)


async def test_a_taken_port_is_an_error_and_leaves_the_model_stopped(model: OfflineModel) -> None:
    other = OfflineModel(port=int(model.base_url.rpartition(":")[2]))
    with pytest.raises(OSError, match="address already in use"):
        await other.start()
    await other.stop()
