"""The gate."""

from __future__ import annotations

from typing import Any

import pytest

from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.lifecycle import DaemonState
from claude_daemon.core.task import Lane
from claude_daemon.service.admit import Admission
from tests.service.doubles import Desk, FakeEngine, spec

MODELS = {"sonnet": "claude-sonnet-5-5", "mine": "some/other-model"}


class Setting:
    def __init__(self, *engines: FakeEngine, **fields: Any) -> None:
        self.state = DaemonState.READY
        self.engines = engines or (FakeEngine(lane=Lane.DIRECT), FakeEngine(lane=Lane.TEXT))
        self.desk = Desk(*self.engines)
        self.admission = Admission(
            self.desk.dispatcher,
            self.engines,
            state=lambda: self.state,
            models=MODELS,
            default_model="sonnet",
            **fields,
        )


def refusal_of(call: Any, *args: Any) -> Refusal:
    with pytest.raises(Refusal) as refused:
        call(*args)
    return refused.value


@pytest.mark.parametrize(
    ("asked", "model"),
    [
        (None, "claude-sonnet-5-5"),
        ("", "claude-sonnet-5-5"),
        ("sonnet", "claude-sonnet-5-5"),
        ("claude-sonnet-5-5", "claude-sonnet-5-5"),
        ("mine", "some/other-model"),
        ("some/other-model", "some/other-model"),
        ("claude-opus-9-20301231", "claude-opus-9-20301231"),
        ("claude-sonnet-5-5[1m]", "claude-sonnet-5-5[1m]"),
        ("claude-x@20300101", "claude-x@20300101"),
    ],
)
def test_aliases_known_models_and_claude_models_are_models(asked: str | None, model: str) -> None:
    assert Setting().admission.model(asked) == model


@pytest.mark.parametrize(
    "asked",
    ["gpt-4", "Sonnet", "claude-", "-claude-x", "claude-x --flag", "claude-x\n", "claude-é", "claude-" + "x" * 200],
)
def test_anything_else_is_refused_by_name(asked: str) -> None:
    failure = refusal_of(Setting().admission.model, asked).failure
    assert (failure.code, failure.param) == (Code.MODEL_NOT_FOUND, "model")
    assert len(failure.message) < 250


@pytest.mark.parametrize(
    ("asked", "lane"),
    [(None, Lane.DIRECT), ("", Lane.DIRECT), ("auto", Lane.DIRECT), ("direct", Lane.DIRECT), ("text", Lane.TEXT)],
)
def test_the_lane_is_direct_where_the_credential_allows_it(asked: str | None, lane: Lane) -> None:
    assert Setting().admission.lane(asked) is lane


def test_without_a_key_of_ours_the_lane_is_text_and_direct_is_refused_with_the_reason() -> None:
    admission = Setting(FakeEngine(), login="login").admission
    assert admission.lane("auto") is Lane.TEXT
    failure = refusal_of(admission.lane, "direct").failure
    assert failure.code is Code.LANE_UNAVAILABLE
    assert "here the credential is login" in failure.message


def test_an_unknown_lane_is_refused() -> None:
    failure = refusal_of(Setting().admission.lane, "agent").failure
    assert (failure.code, failure.param) == (Code.INVALID_REQUEST, "Claude-Daemon-Lane")


@pytest.mark.parametrize("state", DaemonState)
def test_work_is_taken_in_ready_and_degraded_alone(state: DaemonState) -> None:
    setting = Setting()
    setting.state = state
    if state in (DaemonState.READY, DaemonState.DEGRADED):
        setting.admission.check_open()
        return
    failure = refusal_of(setting.admission.check_open).failure
    assert failure.code is (Code.NOT_READY if state is DaemonState.STARTING else Code.DRAINING)
    assert failure.retry_after_seconds
    assert refusal_of(setting.admission.chat, spec()).failure.code is failure.code
    assert setting.desk.dispatcher.idle


async def test_a_chat_is_begun_with_its_model_resolved_and_what_is_approximated_named() -> None:
    setting = Setting()
    async with setting.desk:
        admitted = setting.admission.chat(spec(request={"model": "sonnet", "max_tokens": 5}))
        assert admitted.run.task.spec.model == "claude-sonnet-5-5"
        assert list(admitted.approximated) == ["max_tokens"]
        assert setting.desk.dispatcher.running == 1


async def test_what_the_lane_cannot_do_is_refused_before_it_is_queued() -> None:
    setting = Setting()
    async with setting.desk:
        failure = refusal_of(setting.admission.chat, spec(request={"model": "sonnet", "tools": []})).failure
        assert (failure.code, failure.param) == (Code.UNSUPPORTED_PARAMETER, "tools")
        assert setting.desk.dispatcher.idle
