"""Families, their bounds, and the text that is made of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from claude_daemon.core.budget import Charge
from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.task import Kind, Lane, Outcome, State, Task, TaskSpec, Usage
from claude_daemon.engine.pool import PoolEvent
from claude_daemon.meters import Meters
from claude_daemon.service.run import Run
from claude_daemon.telemetry import metrics as module
from claude_daemon.telemetry.metrics import OTHER, Metrics, Samples
from tests.telemetry.page import PAGE, page


async def values(metrics: Metrics) -> dict[str, float]:
    """By name and labels, as they are written."""
    text = (await metrics.text()).decode()
    return {
        line.rpartition(" ")[0].removeprefix("claude_daemon_"): float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }


def test_the_page_tells_of_every_family() -> None:
    assert PAGE.read_text() == page(), "python -m tests.telemetry.page writes it"


async def test_no_series_tells_when_it_began() -> None:
    metrics = Metrics()
    metrics.tokens["sonnet", "input"].inc(3)
    metrics.commit_seconds.observe(0.1)
    assert not [name for name in await values(metrics) if "_created" in name]


async def test_what_comes_beyond_the_bound_of_a_family_is_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERIES", 3)
    metrics = Metrics()
    for number in range(5):
        metrics.tokens[f"model-{number}", "input"].inc()
        metrics.refused[f"code-{number}"].inc()
    found = await values(metrics)
    assert [name for name in found if name.startswith("tokens")] == [
        *(f'tokens_total{{model="model-{number}",type="input"}}' for number in range(3)),
        f'tokens_total{{model="{OTHER}",type="{OTHER}"}}',
    ]
    assert found[f'refused_total{{code="{OTHER}"}}'] == 2


async def test_a_number_that_belongs_to_no_family_is_an_error() -> None:
    metrics = Metrics()
    metrics.read = lambda: {"nonsense": 1.0}
    with pytest.raises(KeyError, match="no such metrics: nonsense"):
        await metrics.text()


async def test_parts_are_read_in_the_loop_and_written_elsewhere_one_scrape_at_a_time() -> None:
    metrics, seen = Metrics(), []
    gate = asyncio.Event()

    async def look() -> None:
        seen.append("look")
        await gate.wait()

    def read() -> Mapping[str, Samples]:
        seen.append("read" if threading.current_thread() is threading.main_thread() else "elsewhere")
        return {"ready": 1.0}

    metrics.look, metrics.read = look, read
    async with asyncio.TaskGroup() as group:
        first, second = group.create_task(metrics.text()), group.create_task(metrics.document())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert seen == ["look"]
        gate.set()
    assert seen == ["look", "read", "look", "read"]
    assert b"claude_daemon_ready 1.0\n" in first.result()
    told = {metric["name"]: metric for metric in orjson.loads(second.result())["metrics"]}
    assert told["claude_daemon_ready"]["samples"] == [{"name": "claude_daemon_ready", "labels": {}, "value": 1.0}]


async def test_labels_are_escaped() -> None:
    metrics = Metrics()
    metrics.events['a "quoted"\nname\\'].inc()
    text = (await metrics.text()).decode()
    (family,) = [one for one in text_string_to_metric_families(text) if one.name == "claude_daemon_events"]
    assert family.samples[0].labels == {"event": 'a "quoted"\nname\\'}


# what is counted


def spec(**changes: object) -> TaskSpec:
    fields = {
        "kind": Kind.CHAT,
        "lane": Lane.DIRECT,
        "request": {"model": "claude-sonnet-5-5", "messages": []},
        "key_id": "local",
        "trust_domain": "default",
        "request_id": "req_1",
        **changes,
    }
    return TaskSpec(**fields)  # type: ignore[arg-type]


def ended(outcome: Outcome, *, start: str | None = "direct", **changes: object) -> Run:
    """Arrived at 100 s, begun at 101, first told something at 101.5."""
    run = Run(Task(id="task_1", spec=spec(**changes), created_at=0.0, outcome=outcome), 100.0)
    if start is not None:
        run.start, run.started_at, run.first_delta_at = start, 101.0, 101.5
    return run


OK = Outcome(state=State.SUCCEEDED)


def failed(code: Code) -> Outcome:
    return Outcome(state=State.FAILED, failure=Failure(code=code, message="x"))


def meters(now: float = 104.0) -> Meters:
    return Meters(Metrics(), monotonic=lambda: now)


async def test_a_chat_that_ends_is_counted_with_its_wait_its_first_delta_and_its_time() -> None:
    counting = meters()
    counting.settled(ended(OK))
    found = await values(counting.metrics)
    assert found['tasks_ended_total{code="ok",kind="chat",lane="direct"}'] == 1
    assert found['queue_wait_seconds_sum{kind="chat"}'] == 1.0
    assert found['first_delta_seconds_sum{lane="direct"}'] == 1.5
    assert found['turn_seconds_sum{lane="direct"}'] == 3.0


async def test_a_chat_that_never_began_has_no_time() -> None:
    counting = meters()
    counting.settled(ended(failed(Code.QUEUE_TIMEOUT), start=None))
    found = await values(counting.metrics)
    assert found['tasks_ended_total{code="queue_timeout",kind="chat",lane="direct"}'] == 1
    assert not [name for name in found if name.startswith(("turn_seconds", "first_delta", "queue_wait"))]
    assert not any(value for name, value in found.items() if name.startswith("upstream"))


async def test_upstream_calls_tell_how_they_failed() -> None:
    counting = meters()
    call = {"worker_id": "w_1", "request_id": "req_1"}
    counting.model_call("model_call", {**call, "failure": "upstream_credential_refused"})
    counting.model_call("model_call", {**call, "failure": None})
    counting.model_call("model_call", {"failure": "upstream_rate_limited"})
    found = await values(counting.metrics)
    assert {name: value for name, value in found.items() if name.startswith("upstream") and value} == {
        'upstream_calls_total{lane="direct",outcome="upstream_rate_limited"}': 1,
        'upstream_calls_total{lane="cli",outcome="upstream_credential_refused"}': 1,
        'upstream_calls_total{lane="cli",outcome="ok"}': 1,
    }


async def test_tokens_and_cost_are_counted_by_models_that_have_a_name() -> None:
    counting = meters()
    counting.models = frozenset({"claude-sonnet-5-5"})
    usage = Usage(input_tokens=10, output_tokens=5, cache_creation_input_tokens=7, cache_read_input_tokens=0)
    bill = Charge(cost_micro_usd=2_500, micro_usd=3_000)
    for model in ("claude-sonnet-5-5", "claude-made-up"):
        task = Task(id="task_1", spec=spec(request={"model": model}), created_at=0.0)
        counting.paid(task, Outcome(state=State.SUCCEEDED, usage=usage), bill)
    found = await values(counting.metrics)
    for model in ("claude-sonnet-5-5", OTHER):
        tokens = {kind: found.get(f'tokens_total{{model="{model}",type="{kind}"}}') for kind in ("input", "output")}
        assert tokens == {"input": 10, "output": 5}
        assert found[f'tokens_total{{model="{model}",type="cache_write"}}'] == 7
        assert f'tokens_total{{model="{model}",type="cache_read"}}' not in found
        assert found[f'cost_usd_total{{model="{model}"}}'] == 0.0025
        assert found[f'charged_usd_total{{model="{model}"}}'] == 0.003


@pytest.mark.parametrize(
    ("reason", "counted"),
    [
        ("served 200 turns", "turns"),
        ("older than 3600 s", "age"),
        ("grew to 700 MB", "memory"),
        ("room for another binding", "room"),
        ("killed", "operator"),
        ("did not come back from its turn", "stuck"),
        ("whatever it was", OTHER),
    ],
)
async def test_why_a_worker_is_replaced_is_one_of_few_words(reason: str, counted: str) -> None:
    counting = meters()
    counting.pool_event(PoolEvent(name="worker.retiring", level="info", fields={"reason": reason}))
    assert (await values(counting.metrics))[f'workers_retired_total{{reason="{counted}"}}'] == 1


async def test_crashes_failed_starts_and_strays_are_counted() -> None:
    counting = meters()
    for name, fields in (
        ("worker.crashed", {}),
        ("worker.start_failed", {}),
        ("engine.strays_ended", {"pids": [1, 2, 3]}),
    ):
        counting.pool_event(PoolEvent(name=name, level="info", fields=fields))
    found = await values(counting.metrics)
    assert (found["worker_crashes_total"], found["worker_start_failures_total"]) == (1, 1)
    assert found["strays_ended_total"] == 3
    assert found['events_total{event="worker.crashed"}'] == 1


async def test_webhooks_that_fail_are_counted() -> None:
    counting = meters()
    for name in ("webhook.failed", "webhook.delivered", "store.recovered"):
        counting.told(name, {})
    found = await values(counting.metrics)
    assert found['webhook_attempts_total{outcome="failed"}'] == 1
    assert found['webhook_attempts_total{outcome="delivered"}'] == 1
    assert found['events_total{event="store.recovered"}'] == 1


async def test_methods_and_statuses_are_few() -> None:
    class Asked:
        def __init__(self, method: str) -> None:
            self.method = method

    counting = meters()
    counting.access(Asked("GET"), "/v1/tasks/{id}", 200, 0.5)
    counting.access(Asked("BREW"), None, 400, 0.0)
    counting.access(Asked("POST"), "/v1/messages", 499, 2.0)
    found = await values(counting.metrics)
    assert {name for name, value in found.items() if name.startswith("http_requests_total") and value} == {
        'http_requests_total{method="GET",route="/v1/tasks/{id}",status="2xx"}',
        'http_requests_total{method="other",route="none",status="4xx"}',
        'http_requests_total{method="POST",route="/v1/messages",status="499"}',
    }
