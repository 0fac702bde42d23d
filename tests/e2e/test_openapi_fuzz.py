"""Whatever the OpenAPI document allows, or does not, is answered as it says, and never by a failure of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from claude_daemon.wire.openapi import document
from tests.support import DaemonProcess

EXAMPLES = 15
"""Of each operation and mode: what is told wrong is mostly found by the first ones."""
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(document("0"))
FOUND = [result.ok() for result in SCHEMA.get_all_operations() if isinstance(result, Ok)]
OPERATIONS = {f"{one.method.upper()} {one.path}": one for one in FOUND if one.path != "/v1/stream"}
"""All but the WebSocket."""
MODES = [
    (name, mode)
    for name, operation in OPERATIONS.items()
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode is GenerationMode.POSITIVE or operation.body or operation.query  # else there is nothing to say wrong
]


@pytest.mark.parametrize(("name", "mode"), MODES, ids=[f"{mode.value} {name}" for name, mode in MODES])
async def test_every_answer_is_one_that_is_documented(daemon: DaemonProcess, name: str, mode: GenerationMode) -> None:
    operation = OPERATIONS[name]
    assert daemon.http is not None
    headers = {"x-api-key": daemon.key}

    def ask(case: schemathesis.Case) -> None:
        _harmless(case)
        case.call_and_validate(base_url=daemon.url, headers=headers, checks=CHECKS, timeout=60)

    strategy: st.SearchStrategy[schemathesis.Case] = operation.as_strategy(generation_mode=mode)
    await asyncio.to_thread(_try(strategy, ask))


Ask = Callable[[schemathesis.Case], None]


def _try(cases: st.SearchStrategy[schemathesis.Case], ask: Ask) -> Callable[[], None]:
    @seed(20261127)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def run(case: schemathesis.Case) -> None:
        ask(case)

    return run


def _harmless(case: schemathesis.Case) -> None:
    """Tasks that are accepted are the offline model's; what they ask must end, and tell nobody outside."""
    body: Any = case.body
    if isinstance(body, dict):
        body.pop("webhook", None)
