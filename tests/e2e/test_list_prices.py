"""Without ``[prices]``: what the models of the shipped aliases cost is known."""

from __future__ import annotations

from typing import Any

from claude_daemon.core.list_prices import LIST_PRICES
from claude_daemon.core.price import cost_micro_usd
from claude_daemon.core.task import Usage
from tests.support import DaemonProcess, sse


async def ended(daemon: DaemonProcess, **body: Any) -> dict[str, Any]:
    async with daemon.http.post("/v1/tasks", json=body) as response:
        assert response.status == 202, await response.text()
        task = (await response.json())["id"]
    async with daemon.http.get(f"/v1/tasks/{task}/events") as response:
        await sse(response)
    async with daemon.http.get(f"/v1/tasks/{task}") as response:
        return dict(await response.json())


async def test_a_task_costs_its_tokens_at_the_list_price_and_usage_tells_it(daemon: DaemonProcess) -> None:
    for alias, model in (("sonnet", "claude-sonnet-5-5"), ("haiku", "claude-haiku-5-5")):
        task = await ended(daemon, prompt="[[tokens=10]]", model=alias)
        counts = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        used = Usage(**{name: task["usage"][name] for name in counts}, model_calls=1)
        assert task["cost_usd"] == cost_micro_usd(used, LIST_PRICES[model]) / 1e6 > 0
    usage = await daemon.control("usage?by=model")
    priced = {row["model"]: row for row in usage["data"]}["claude-haiku-5-5"]
    assert (priced["cost_usd"] > 0, priced["unpriced"]) == (True, 0)
