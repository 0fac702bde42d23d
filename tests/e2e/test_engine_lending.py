"""With no spare at hand, a warm worker serves what it is not bound to, and nobody waits for a spawn."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.support import DaemonProcess, text_of

pytestmark = pytest.mark.engine

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
FORM = {"format": {"type": "json_schema", "schema": SCHEMA}}


async def ask(daemon: DaemonProcess, prompt: str, **body: Any) -> str:
    response = await daemon.chat(prompt, **body)
    assert response.status == 200, await response.text()
    return text_of(await response.json())


def systems(model: OfflineModel, marker: str) -> list[str]:
    """The last system block of each model call whose messages hold the marker."""
    return [r.body["system"][-1]["text"] for r in model.requests if r.body and marker in str(r.body["messages"])]


async def test_a_lent_worker_sends_the_asked_prompt_and_then_its_own_again(
    start_daemon: StartDaemon, model: OfflineModel
) -> None:
    daemon = await start_daemon({"engine.workers": 1, "engine.spares": 0})
    (worker,) = await daemon.workers()
    for system in ("First prompt.", "Second prompt.", "First prompt.", "Third prompt."):
        await ask(daemon, f"lending-test {system}", system=system)
    assert systems(model, "lending-test") == ["First prompt.", "Second prompt.", "First prompt.", "Third prompt."]
    starts = (await daemon.control("status"))["starts"]
    assert starts == {"warm": 1, "lent": 2, "spare": 1, "cold": 0}
    assert [w["pid"] for w in await daemon.workers()] == [worker["pid"]]


async def test_a_lent_worker_without_a_prompt_sends_none(start_daemon: StartDaemon, model: OfflineModel) -> None:
    daemon = await start_daemon({"engine.workers": 1, "engine.spares": 0})
    await ask(daemon, "bare-test one", system="Own prompt.")
    await ask(daemon, "bare-test two")
    sent = systems(model, "bare-test")
    assert sent[0] == "Own prompt."
    assert "Own prompt." not in sent[1]


async def test_a_schema_is_lent_too_and_its_answer_still_judged(start_daemon: StartDaemon, model: OfflineModel) -> None:
    daemon = await start_daemon({"engine.workers": 1, "engine.spares": 0})
    await ask(daemon, "schema-test one", system="Own prompt.")
    answer = await ask(daemon, "schema-test two", system="Other prompt.", output_config=FORM)
    assert orjson.loads(answer).keys() == {"n"}
    (sent,) = (r.body for r in model.requests if r.body and "schema-test two" in str(r.body["messages"]))
    assert sent["output_config"]["format"] == FORM["format"]
    assert systems(model, "schema-test") == ["Own prompt.", "Other prompt."]
    broken = await daemon.chat("schema-test three [[invalid]]", output_config=FORM)
    assert (broken.status, "schema" in await broken.text()) == (502, True)
    assert "output_config" not in str(await ask(daemon, "schema-test four [[history]]"))
    assert (await daemon.control("status"))["starts"] == {"warm": 0, "lent": 3, "spare": 1, "cold": 0}


async def test_an_upstream_that_knows_no_forms_costs_one_more_try_and_no_answer(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 1, "engine.spares": 0})
    await ask(daemon, "older-test one", system="Own prompt.")
    for prompt in ("older-test two", "older-test three"):
        answer = await ask(daemon, f"{prompt} [[no-format]]", system=prompt, output_config=FORM)
        assert orjson.loads(answer).keys() == {"n"}
    await daemon.logged("pool.forms_not_lent")
    starts = (await daemon.control("status"))["starts"]
    assert (starts["lent"], starts["cold"]) == (1, 2)


async def test_without_the_capability_a_new_prompt_waits_for_a_process_of_its_own(
    start_daemon: StartDaemon, model: OfflineModel
) -> None:
    daemon = await start_daemon({"engine.workers": 1, "engine.spares": 0, "engine.without": "system_block"})
    for system in ("First prompt.", "Second prompt."):
        await ask(daemon, f"unlent-test {system}", system=system)
    assert systems(model, "unlent-test") == ["First prompt.", "Second prompt."]
    starts = (await daemon.control("status"))["starts"]
    assert starts["lent"] == 0
    assert starts["cold"] == 1
