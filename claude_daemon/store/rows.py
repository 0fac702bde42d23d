"""Tasks as rows and back: small columns for what changes or is searched, JSON for what was asked and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from sqlite3 import Connection, Row
from typing import Any, Final

import orjson

from claude_daemon.core.agent import AgentSpec, Approval, Subagent
from claude_daemon.core.errors import Code, Failure, Fault
from claude_daemon.core.session import SessionTurn
from claude_daemon.core.task import Effects, Kind, Lane, Outcome, State, Task, TaskSpec, Usage
from claude_daemon.ports import Idempotency, StoredEvent

SELECT_TASK: Final = "SELECT t.*, s.spec FROM tasks t JOIN specs s ON s.n = t.n "

_SPEC_FIELDS: Final = tuple(field.name for field in fields(TaskSpec))
_AGENT_FIELDS: Final = tuple(field.name for field in fields(AgentSpec))
_INSERT_TASK: Final = """
    INSERT INTO tasks (
        id, key_id, trust_domain, request_id, kind, lane, model, priority, state, attempt, fence, effects, last_seq,
        created_at, deadline_at, started_at, finished_at, cancel_requested_at, batch_id, webhook,
        idempotency_key, idempotency_digest, outcome, session_id, fork_of
    ) VALUES (
        :id, :key_id, :trust_domain, :request_id, :kind, :lane, :model, :priority, :state, :attempt, :fence, :effects,
        :last_seq, :created_at, :deadline_at, :started_at, :finished_at, :cancel_requested_at, :batch_id, :webhook,
        :idempotency_key, :idempotency_digest, :outcome, :session_id, :fork_of
    )
"""


# to rows


def dump(value: object) -> bytes:
    """JSON of values, mappings and our frozen dataclasses. Raises TypeError for what has none."""
    return orjson.dumps(value, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def insert_task(
    db: Connection, task: Task, *, spec: bytes, outcome: bytes | None = None, idempotency: Idempotency | None = None
) -> None:
    asked = task.spec
    cursor = db.execute(
        _INSERT_TASK,
        {
            "id": task.id,
            "key_id": asked.key_id,
            "trust_domain": asked.trust_domain,
            "request_id": asked.request_id,
            "kind": asked.kind.value,
            "lane": asked.lane.value,
            "model": asked.model,
            "priority": asked.priority,
            "state": task.state.value,
            "attempt": task.attempt,
            "fence": task.fence,
            "effects": task.effects.value,
            "last_seq": task.last_seq,
            "created_at": task.created_at,
            "deadline_at": deadline(task.created_at, asked.timeout_seconds),
            "started_at": task.started_at,
            "finished_at": task.finished_at,
            "cancel_requested_at": task.cancel_requested_at,
            "batch_id": task.batch_id,
            "webhook": asked.webhook,
            "idempotency_key": None if idempotency is None else idempotency.key,
            "idempotency_digest": None if idempotency is None else idempotency.digest,
            "outcome": outcome,
            "session_id": None if asked.session is None else asked.session.id,
            "fork_of": None if asked.session is None else asked.session.source,
        },
    )
    db.execute("INSERT INTO specs VALUES (?, ?)", (cursor.lastrowid, spec))


def deadline(submitted_at: float, timeout_seconds: float | None) -> float | None:
    return None if timeout_seconds is None else submitted_at + timeout_seconds


def insert_events(db: Connection, task_id: str, events: Iterable[StoredEvent]) -> None:
    rows = ((task_id, event.seq, event.type, event.encoded) for event in events)
    db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", rows)


# from rows


def find_task(db: Connection, task_id: str) -> Task | None:
    row = db.execute(SELECT_TASK + "WHERE t.id = ?", (task_id,)).fetchone()
    return None if row is None else task_of(row)


def task_of(row: Row) -> Task:
    return Task(
        id=row["id"],
        spec=_spec_of(row["spec"]),
        state=State(row["state"]),
        attempt=row["attempt"],
        fence=row["fence"],
        effects=Effects(row["effects"]),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        cancel_requested_at=row["cancel_requested_at"],
        outcome=None if row["outcome"] is None else _outcome_of(row["outcome"]),
        last_seq=row["last_seq"],
        batch_id=row["batch_id"],
    )


def _spec_of(encoded: bytes) -> TaskSpec:
    said: dict[str, Any] = orjson.loads(encoded)
    known = {name: said[name] for name in _SPEC_FIELDS if name in said}
    agent, session = known.get("agent"), known.get("session")
    return TaskSpec(
        **{
            **known,
            "kind": Kind(said["kind"]),
            "lane": Lane(said["lane"]),
            "agent": None if agent is None else _agent_of(agent),
            "session": None if session is None else SessionTurn(**session),
        }
    )


def _agent_of(said: Mapping[str, Any]) -> AgentSpec:
    known = {name: said[name] for name in _AGENT_FIELDS if name in said}
    lists = {name: tuple(said.get(name, ())) for name in ("allow", "deny", "add_dirs", "mcp_servers")}
    agents = tuple(_subagent_of(one) for one in said.get("agents", ()))
    return AgentSpec(**{**known, **lists, "agents": agents, "approval": Approval(said["approval"])})


def _subagent_of(said: Mapping[str, Any]) -> Subagent:
    tools = said["tools"]
    return Subagent(**{**said, "tools": None if tools is None else tuple(tools)})


def usage_of(encoded: bytes | None) -> Usage:
    return Usage() if encoded is None else Usage(**orjson.loads(encoded))


def _outcome_of(encoded: bytes) -> Outcome:
    said: dict[str, Any] = orjson.loads(encoded)
    return Outcome(
        state=State(said["state"]),
        usage=Usage(**said["usage"]),
        stop_reason=said["stop_reason"],
        failure=None if said["failure"] is None else failure_of(said["failure"]),
        text=said["text"],
        structured=said["structured"],
        diff=said.get("diff"),
        files=tuple(said.get("files", ())),
        cost_micro_usd=said["cost_micro_usd"],
    )


def failure_of(said: Mapping[str, Any]) -> Failure:
    faults = tuple(Fault(**fault) for fault in said["faults"])
    return Failure(**{**said, "code": Code(said["code"]), "faults": faults})


# chats


def wordless(task: Task) -> Task:
    """A chat as it is kept: who, model, tokens, cost and outcome; nothing that was said, asked for or named."""
    spec = replace(
        task.spec,
        request={"model": task.spec.model},
        headers=None,
        output_schema=None,
        metadata={},
    )
    outcome = task.outcome
    if outcome is not None:
        failure = None if outcome.failure is None else replace(outcome.failure, faults=())
        outcome = replace(outcome, text=None, structured=None, failure=failure)
    return replace(task, spec=spec, outcome=outcome, last_seq=0)
