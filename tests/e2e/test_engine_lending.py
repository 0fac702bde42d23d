"""With no spare at hand, a warm worker serves another system prompt than its own, and nobody waits for a spawn."""

from __future__ import annotations

from typing import Any

from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.support import DaemonProcess, text_of


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


async def test_a_schema_is_never_lent(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 1, "engine.spares": 0})
    await ask(daemon, "schema-test one", system="Own prompt.")
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = await ask(daemon, "schema-test two", output_config={"format": {"type": "json_schema", "schema": schema}})
    assert '"n"' in answer
    assert (await daemon.control("status"))["starts"]["lent"] == 0


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
