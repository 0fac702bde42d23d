"""Masking: no secret, no size and no broken value gets into a line; exceptions as fields."""

from __future__ import annotations

import logging
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.config import Secret
from claude_daemon.telemetry import masking
from tests.telemetry.conftest import Start, log

# Secrets


SECRET_NAMES = ["authorization", "Authorization", "x-api-key", "api_key", "apikey", "token", "secret", "key"]
SECRET_NAMES += ["password", "auth_token", "webhook_secret", "Set-Cookie"]


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_fields_named_for_secrets_are_masked_at_every_depth(start: Start, name: str) -> None:
    logs = start()
    log.info("a", **{name: "hunter22"}, deep=[{"headers": {name: ["hunter22"]}}])
    assert "hunter22" not in logs.text()
    assert logs.lines()[0][name] == "***"


@pytest.mark.parametrize("name", ["key_id", "max_tokens", "input_tokens", "tokens", "monkey", "keys", "secrets_count"])
def test_fields_that_only_sound_like_secrets_are_shown(start: Start, name: str) -> None:
    logs = start()
    log.info("a", **{name: "shown"})
    assert logs.lines()[0][name] == "shown"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("key sk-ant-api03-AbC_9 used", "key sk-*** used"),
        ("cd_0123456789abcdef", "cd_***"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("bearer x", "bearer ***"),
        ("redis://user:pw@host:6379/0", "redis://***@host:6379/0"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("task-12345678 disk-usage abcd_12345678", "task-12345678 disk-usage abcd_12345678"),
        ("the known s3cret-value, here", "the known ***, here"),
        ("a short pin 1234", "a short pin 1234"),
    ],
)
def test_what_looks_like_a_secret_or_is_known_as_one_is_masked_everywhere(start: Start, text: str, masked: str) -> None:
    logs = start(secrets=(Secret("s3cret-value"), Secret("1234")))
    log.info(text, value=text, exc_info=ValueError(text), items=[text], table={text: 1}, other=Exception(text))
    logging.getLogger("x").warning(text)
    first, second = logs.lines()
    assert first["event"] == first["value"] == first["exception"]["message"] == first["other"] == masked
    assert (first["items"], first["table"], second["message"]) == ([masked], {masked: 1}, masked)


def test_a_secret_object_is_masked_by_itself(start: Start) -> None:
    logs = start()
    log.info("a", value=Secret("hunter22"))
    assert logs.lines()[0]["value"] == "***"


def test_long_texts_lists_and_deep_tables_are_cut(start: Start) -> None:
    logs = start()
    cycle: dict[str, Any] = {}
    cycle["again"] = cycle
    log.info("a", text="x" * 10_000, items=list(range(1000)), cycle=cycle, huge=10**400, nan=float("nan"))
    (line,) = logs.lines()
    assert line["text"].endswith("x… (10000 characters)")
    assert len(line["text"]) < masking.MAX_TEXT_CHARS + 100
    assert len(line["items"]) == masking.MAX_ITEMS
    assert len(line["huge"]) <= masking.MAX_ITEMS
    assert line["nan"] == "nan"


def test_a_value_that_cannot_be_shown_costs_neither_the_line_nor_the_caller(start: Start) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    class Sly(dict[str, int]):
        def items(self) -> Any:
            raise RuntimeError("no")

    logs = start()
    log.info("a", value=Odd(), exc_info=Odd())
    log.info("b", value=Sly())
    (line,) = logs.lines()
    assert (line["value"], line["exception"]["message"]) == ("<unprintable Odd>", "<unprintable Odd>")
    assert logs.handle.lost == 1


@given(
    st.dictionaries(
        st.sampled_from(["a", "path", "token", "x-api-key", "reason", "n"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters())
        | st.sampled_from(["sk-ant-api03-AbC_9", "Bearer abc", "redis://u:p@h", 's3"cr\\et-välue', "cd_0123456789"])
        | st.lists(st.text()),
    )
)
def test_what_is_looked_at_all_at_once_reads_as_if_each_value_had_been(fields: dict[str, Any]) -> None:
    masker = masking.Masker((Secret('s3"cr\\et-välue'),))
    rendered = masker.plain(fields)
    assert rendered is None or rendered == orjson.dumps(masker.masked(fields))


def test_hardly_any_line_needs_a_second_look() -> None:
    masker = masking.Masker((Secret("s3cret-value"),))
    line = {"path": "/v1/messages", "status": 200, "seconds": 0.1, "cost_usd": None, "key_id": "local", "ok": True}
    masker.masked(line)
    assert masker.plain(line) == orjson.dumps(line)
    more: list[dict[str, Any]] = [
        {"token": "x"},
        {"reason": "Bearer x"},
        {"said": "s3cret-value"},
        {"url": "http://h"},
        {"list": []},
    ]
    for added in more:
        assert masker.plain({**line, **added}) is None


# Exceptions


def test_exceptions_are_fields_with_their_causes_and_groups(start: Start) -> None:
    logs = start()
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ExceptionGroup("both", [ValueError("one"), OSError(2, "two")]) from error
    except ExceptionGroup:
        log.exception("turn.failed", task_id="t")
    (line,) = logs.lines()
    assert (line["level"], line["task_id"]) == ("error", "t")
    exception = line["exception"]
    assert (exception["type"], exception["message"]) == ("ExceptionGroup", "both (2 sub-exceptions)")
    (frame,) = exception["stack"]
    assert re.fullmatch(r".*/test_masking\.py:\d+ in test_exceptions_are_.*", frame)
    assert exception["cause"]["type"] == "KeyError"
    assert [inner["message"] for inner in exception["exceptions"]] == ["one", "[Errno 2] two"]


def test_an_exception_may_be_given_as_itself_or_as_the_tuple_of_the_standard_library(start: Start) -> None:
    logs = start()
    error = ValueError("x")
    log.warning("a", exc_info=error)
    log.warning("b", exc_info=None)
    log.warning("c", exc_info=True)
    logging.getLogger("x").error("d", exc_info=(ValueError, error, None))
    a, b, c, d = logs.lines()
    assert a["exception"] == d["exception"] == {"type": "ValueError", "message": "x", "stack": []}
    assert "exception" not in b
    assert "exception" not in c
