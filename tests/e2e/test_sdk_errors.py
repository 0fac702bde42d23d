"""Errors as the SDKs' own exceptions: what went wrong, on which side, and whether to try again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import anthropic
import openai
import pytest

from tests.conftest import StartDaemon
from tests.e2e.sdk import anthropic_sdk, both_lanes, openai_sdk, unique, user
from tests.support import DaemonProcess

# what the upstream answers → what OpenAI's clients and what Anthropic's see
UPSTREAM: dict[int, tuple[int, type[openai.APIStatusError], int, type[anthropic.APIStatusError], str]] = {
    400: (400, openai.BadRequestError, 400, anthropic.BadRequestError, "invalid_request_error"),
    401: (502, openai.InternalServerError, 502, anthropic.InternalServerError, "api_error"),
    403: (502, openai.InternalServerError, 502, anthropic.InternalServerError, "api_error"),
    404: (404, openai.NotFoundError, 404, anthropic.NotFoundError, "not_found_error"),
    413: (413, openai.APIStatusError, 413, anthropic.ContentTooLargeError, "request_too_large"),
    429: (429, openai.RateLimitError, 429, anthropic.RateLimitError, "rate_limit_error"),
    500: (502, openai.InternalServerError, 502, anthropic.InternalServerError, "api_error"),
    529: (503, openai.InternalServerError, 529, anthropic.OverloadedError, "overloaded_error"),
}


async def by_openai(daemon: DaemonProcess, lane: str, prompt: str, **options: Any) -> Any:
    """The error that a chat completion ends in before it has begun."""
    async with openai_sdk(daemon, lane) as sdk:
        with pytest.raises(openai.APIStatusError) as caught:
            await sdk.chat.completions.create(**{"model": "sonnet", "messages": user(prompt), **options})
    return caught.value


async def by_anthropic(daemon: DaemonProcess, lane: str, prompt: str, **options: Any) -> Any:
    async with anthropic_sdk(daemon, lane) as sdk:
        with pytest.raises(anthropic.APIStatusError) as caught:
            asked: dict[str, Any] = {"model": "sonnet", "max_tokens": 100, "messages": user(prompt), **options}
            await sdk.messages.create(**asked)
    return caught.value


async def both(one: Awaitable[Any], other: Awaitable[Any]) -> Sequence[Any]:
    """At once, because Claude Code takes its time to try again."""
    async with asyncio.timeout(30):
        return await asyncio.gather(one, other)


@pytest.mark.parametrize("status", UPSTREAM)
@pytest.mark.parametrize(
    ("lane", "streamed"),
    # Claude Code takes its time to try again, so that on the text lane each dialect has one of the two
    [("direct", (False, False)), ("direct", (True, True)), ("text", (False, True))],
    ids=["direct-whole", "direct-streamed", "text"],
)
async def test_an_error_of_the_upstream_has_its_own_type(
    daemon: DaemonProcess, lane: str, streamed: tuple[bool, bool], status: int
) -> None:
    prompt = unique(f"[[error={status}]]")
    theirs, ours = await both(
        by_openai(daemon, lane, prompt, stream=streamed[0]), by_anthropic(daemon, lane, prompt, stream=streamed[1])
    )
    openai_status, openai_type, anthropic_status, anthropic_type, kind = UPSTREAM[status]
    assert (theirs.status_code, type(theirs)) == (openai_status, openai_type)
    assert anthropic_type in type(ours).__mro__
    assert (ours.status_code, ours.type) == (anthropic_status, kind)
    assert theirs.body.keys() == {"message", "type", "param", "code"}
    assert ours.body.keys() == {"type", "error", "request_id"}
    for error in (theirs, ours):
        assert error.request_id == error.response.headers["x-request-id"]
        assert error.response.headers["Claude-Daemon-Lane"] == lane
        assert error.response.headers["X-Task-ID"].startswith("task_")
        assert error.response.headers["Content-Type"].startswith("application/json")
        retried = error.response.headers.get("x-should-retry")
        assert retried == ("false" if status in (401, 403) else None)


@both_lanes
async def test_the_time_that_the_upstream_wants_to_pass_is_told(daemon: DaemonProcess, lane: str) -> None:
    prompt = unique("[[error=429]] [[retry-after=120]]")
    theirs, ours = await both(by_openai(daemon, lane, prompt), by_anthropic(daemon, lane, prompt))
    assert theirs.response.headers["retry-after"] == ours.response.headers["retry-after"] == "120"
    assert theirs.code == "upstream_rate_limited"


# a direct answer that is not streamed comes when it is complete: only engine.turn_timeout_s bounds it
@pytest.mark.parametrize(("lane", "streamed"), [("direct", True), ("text", True), ("text", False)])
async def test_an_upstream_that_never_answers_is_a_504(daemon: DaemonProcess, lane: str, streamed: bool) -> None:
    prompt = unique("[[hang]]")
    theirs, ours = await both(
        by_openai(daemon, lane, prompt, stream=streamed), by_anthropic(daemon, lane, prompt, stream=streamed)
    )
    assert (theirs.status_code, theirs.code) == (504, "stalled")
    assert isinstance(ours, anthropic.GatewayTimeoutError)
    assert ours.type == "timeout_error"


# in mid-stream

FAULTS = {
    "cut=3": ("upstream_cut", "api_error"),
    "stall=3": ("stalled", "timeout_error"),
    "error-event=3": ("upstream_overloaded", "overloaded_error"),
    "malformed=3": ("upstream_malformed", "api_error"),
}
MENDED = ("error-event=3", "malformed=3")
"""After these Claude Code asks again without a stream."""


@pytest.mark.parametrize(
    ("lane", "fault"), [*(("direct", fault) for fault in FAULTS), ("text", "cut=3"), ("text", "stall=3")]
)
async def test_a_fault_in_mid_stream_is_raised_and_leaves_the_text_alone(
    daemon: DaemonProcess, lane: str, fault: str
) -> None:
    prompt = unique(f"[[{fault}]] [[tokens=30]]")
    texts: dict[str, list[str]] = {"openai": [], "anthropic": []}

    async def read_openai() -> openai.APIError:
        async with openai_sdk(daemon, lane) as sdk:
            stream = await sdk.chat.completions.create(model="sonnet", messages=user(prompt), stream=True)
            with pytest.raises(openai.APIError) as caught:
                async for chunk in stream:
                    texts["openai"].append(chunk.choices[0].delta.content or "")
            return caught.value

    async def read_anthropic() -> anthropic.APIStatusError:
        async with anthropic_sdk(daemon, lane) as sdk:
            with pytest.raises(anthropic.APIStatusError) as caught:
                async with sdk.messages.stream(model="sonnet", max_tokens=100, messages=user(prompt)) as stream:
                    async for piece in stream.text_stream:
                        texts["anthropic"].append(piece)
            return caught.value

    theirs, ours = await both(read_openai(), read_anthropic())
    code, kind = FAULTS[fault]
    assert theirs.code == code
    assert ours.type == kind
    assert ours.status_code == 200  # it had begun
    for pieces in texts.values():
        assert "".join(pieces) == "Hello from the"


@pytest.mark.parametrize("fault", MENDED)
async def test_what_claude_code_mends_by_itself_is_seen_by_nobody(daemon: DaemonProcess, fault: str) -> None:
    async def ask(prompt: str) -> str:
        async with openai_sdk(daemon, "text") as sdk:
            stream = await sdk.chat.completions.create(model="sonnet", messages=user(prompt), stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    mended, unharmed = await both(ask(f"[[{fault}]] [[tokens=30]]"), ask("[[tokens=30]]"))
    assert mended == unharmed


# our own


@pytest.mark.parametrize("key", ["cd_" + "x" * 43, "sk-ant-something", "none"])
async def test_a_key_that_is_not_ours_is_an_authentication_error(daemon: DaemonProcess, key: str) -> None:
    async with openai_sdk(daemon, None, api_key=key) as sdk:
        with pytest.raises(openai.AuthenticationError) as theirs:
            await sdk.chat.completions.create(model="sonnet", messages=user("hi"))
    async with anthropic_sdk(daemon, None, api_key=key) as sdk:
        with pytest.raises(anthropic.AuthenticationError) as ours:
            await sdk.messages.create(model="sonnet", max_tokens=9, messages=user("hi"))
    assert theirs.value.code == "unauthenticated"
    assert ours.value.type == "authentication_error"
    assert ours.value.request_id
    for error in (theirs.value, ours.value):
        assert error.response.headers["WWW-Authenticate"] == "Bearer"
        assert key not in str(error.body)


async def test_the_key_may_come_either_way_in_both_dialects(daemon: DaemonProcess) -> None:
    async with anthropic_sdk(daemon, None, api_key=None, auth_token=daemon.key) as sdk:
        assert (await sdk.messages.create(model="sonnet", max_tokens=9, messages=user("hi"))).content
    headers: Any = {"x-api-key": daemon.key, "Authorization": openai.Omit()}
    async with openai_sdk(daemon, None) as sdk2:
        answer = await sdk2.chat.completions.create(model="sonnet", messages=user("hi"), extra_headers=headers)
    assert answer.choices


async def test_a_page_of_another_origin_is_denied(daemon: DaemonProcess) -> None:
    origin: Any = {"Origin": "http://evil.example"}
    theirs, ours = await both(
        by_openai(daemon, "direct", "hi", extra_headers=origin),
        by_anthropic(daemon, "direct", "hi", extra_headers=origin),
    )
    assert isinstance(theirs, openai.PermissionDeniedError)
    assert theirs.code == "origin_not_allowed"
    assert isinstance(ours, anthropic.PermissionDeniedError)
    assert ours.type == "permission_error"


@both_lanes
async def test_an_unknown_model_is_not_found_and_told_what_is_known(daemon: DaemonProcess, lane: str) -> None:
    theirs, ours = await both(
        by_openai(daemon, lane, "hi", model="gpt-0"), by_anthropic(daemon, lane, "hi", model="gpt-0")
    )
    assert isinstance(theirs, openai.NotFoundError)
    assert (theirs.code, theirs.param) == ("model_not_found", "model")
    assert isinstance(ours, anthropic.NotFoundError)
    assert all("sonnet" in error.message for error in (theirs, ours))


@both_lanes
async def test_a_model_that_the_upstream_does_not_know_is_not_found(daemon: DaemonProcess, lane: str) -> None:
    theirs, ours = await both(
        by_openai(daemon, lane, unique("hi"), model="claude-does-not-exist"),
        by_anthropic(daemon, lane, unique("hi"), model="claude-does-not-exist"),
    )
    assert isinstance(theirs, openai.NotFoundError)
    assert isinstance(ours, anthropic.NotFoundError)


async def test_an_unknown_lane_is_a_bad_request(daemon: DaemonProcess) -> None:
    theirs, ours = await both(by_openai(daemon, "fast", "hi"), by_anthropic(daemon, "fast", "hi"))
    assert isinstance(theirs, openai.BadRequestError)
    assert theirs.param == "Claude-Daemon-Lane"
    assert isinstance(ours, anthropic.BadRequestError)


@both_lanes
async def test_a_body_with_several_faults_tells_them_all(daemon: DaemonProcess, lane: str) -> None:
    wrong: Any = [{"role": "user"}, {"role": "nobody", "content": "hi"}]
    theirs, ours = await both(
        by_openai(daemon, lane, "hi", messages=wrong, stream=False),
        by_anthropic(daemon, lane, "hi", messages=wrong, max_tokens=-1),
    )
    assert isinstance(theirs, openai.BadRequestError)
    assert isinstance(ours, anthropic.BadRequestError)
    for error in (theirs, ours):
        assert "messages.0.content" in error.message
        assert "messages.1.role" in error.message
    assert "max_tokens" in ours.message


async def test_a_body_over_the_limit_is_too_large(daemon: DaemonProcess) -> None:
    prompt = "x" * (16 * 1024 * 1024)
    theirs, ours = await both(by_openai(daemon, "direct", prompt), by_anthropic(daemon, "direct", prompt))
    assert (theirs.status_code, theirs.code) == (413, "body_too_large")
    assert type(ours) is anthropic.ContentTooLargeError
    assert "request_too_large" in str(ours.body)


async def test_another_media_type_and_method_are_refused(daemon: DaemonProcess) -> None:
    media: Any = {"Content-Type": "text/plain"}
    theirs, ours = await both(
        by_openai(daemon, "direct", "hi", extra_headers=media),
        by_anthropic(daemon, "direct", "hi", extra_headers=media),
    )
    assert (theirs.status_code, theirs.code) == (415, "unsupported_media_type")
    assert (ours.status_code, ours.type) == (415, "invalid_request_error")
    async with openai_sdk(daemon, None) as sdk:
        with pytest.raises(openai.APIStatusError) as caught:
            await sdk.get("/chat/completions", cast_to=object)
    assert caught.value.status_code == 405
    assert "POST" in caught.value.response.headers["Allow"]


async def test_our_own_overload_is_told_as_each_dialect_has_it(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 1, "http.max_waiting": 1, "engine.stall_timeout_s": 30})
    prompt = unique("[[hang]]")
    async with asyncio.TaskGroup() as group:
        held = [group.create_task(daemon.chat(prompt)) for _ in range(2)]  # one runs, one waits
        while (queue := (await daemon.control("status"))["queue"])["waiting"] != 1 or queue["running"] != 1:
            await asyncio.sleep(0.02)
        theirs, ours = await both(by_openai(daemon, "text", "hi"), by_anthropic(daemon, "text", "hi"))
        for task in held:
            task.cancel()
    assert (theirs.status_code, theirs.code) == (503, "overloaded")
    assert isinstance(ours, anthropic.OverloadedError)
    assert ours.type == "overloaded_error"
    assert all(int(error.response.headers["Retry-After"]) >= 1 for error in (theirs, ours))


# request ids


@both_lanes
async def test_a_request_keeps_the_id_that_its_client_gave(daemon: DaemonProcess, lane: str) -> None:
    given = {"X-Request-ID": f"mine.{lane}:1-2_3"}
    async with openai_sdk(daemon, lane) as sdk:
        answer = await sdk.chat.completions.create(model="sonnet", messages=user("hi"), extra_headers=given)
        assert answer._request_id == given["X-Request-ID"]
    async with anthropic_sdk(daemon, lane) as sdk2:
        message = await sdk2.messages.create(model="sonnet", max_tokens=9, messages=user("hi"), extra_headers=given)
        assert message._request_id == given["X-Request-ID"]
        async with sdk2.messages.stream(
            model="sonnet", max_tokens=9, messages=user("hi"), extra_headers=given
        ) as stream:
            assert stream.request_id == given["X-Request-ID"]
    await daemon.logged("task.settled", request_id=given["X-Request-ID"], lane=lane)


@pytest.mark.parametrize("given", ["x" * 5000, "a b", "a\tb", ""])
async def test_an_id_that_may_not_stand_in_a_log_is_replaced(daemon: DaemonProcess, given: str) -> None:
    async with openai_sdk(daemon, "direct") as sdk:
        headers = {"X-Request-ID": given}
        answer = await sdk.chat.completions.create(model="sonnet", messages=user("hi"), extra_headers=headers)
    assert answer._request_id
    assert answer._request_id.startswith("req_")
