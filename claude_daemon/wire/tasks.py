"""Tasks and batches: what is submitted, and what is told of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)

from claude_daemon.core.agent import (
    MAX_RULE,
    MAX_RULES,
    PATTERN,
    SERVER,
    SERVER_RULE,
    TOOLS,
    AgentSpec,
    Approval,
    Subagent,
    wrong_rule,
)
from claude_daemon.core.budget import MICRO, usd
from claude_daemon.core.errors import Failure
from claude_daemon.core.task import Outcome, Task, Usage
from claude_daemon.wire.anthropic import MAX_MESSAGES, InputMessage, System
from claude_daemon.wire.openai_messages import Strict
from claude_daemon.wire.parse import ONE_OF_MANY, load, validate, wrong

MAX_TIMEOUT_S: Final = 7 * 24 * 3600.0
"""A task that has waited for a week is one that nobody waits for."""
MAX_PRIORITY: Final = 10
"""Either way: a waiting task gains one a minute, so no priority holds longer than that."""
MAX_METADATA: Final = 16
MAX_METADATA_KEY: Final = 64
MAX_METADATA_VALUE: Final = 512
"""The three bounds are those of OpenAI's ``metadata``."""
MAX_MESSAGE: Final = 4096
"""Characters that the model is told with a denial."""
MAX_BATCH: Final = 1000
"""Tasks of one submission: as many as are written in one commit without holding up the others."""

MAX_DIRS: Final = 16
"""Directories of one task, beside its working directory: each is a mount of its own in the sandbox."""
MAX_PATH: Final = 4096
"""Characters of a path; Linux takes no longer one."""
MAX_TURNS: Final = 1000
"""Model calls of one task: an agent that has not come to its end by then goes in circles."""
MAX_COST_USD: Final = 10_000.0
MAX_SERVERS: Final = 16
"""MCP servers of one task: each is a process or a connection of its own, and its tools stand in every model call."""
MAX_AGENTS: Final = 16
"""Subagents of one task: the description of each stands in every model call."""
MAX_DESCRIPTION: Final = 2048
"""Characters of a subagent's description: a paragraph by which the model chooses."""
MAX_AGENT_PROMPT: Final = 100_000
"""Characters of a subagent's system prompt: ten times what Claude Code's own is long."""

MAX_SESSION_ID: Final = 64
"""Characters; ours have 31."""


def _few_agents(value: object) -> object:
    if isinstance(value, dict) and len(value) > MAX_AGENTS:
        raise wrong(f"At most {MAX_AGENTS} agents.")
    return value


def _few_entries(value: object) -> object:
    if isinstance(value, dict) and len(value) > MAX_METADATA:
        raise wrong(f"At most {MAX_METADATA} entries.")
    return value


def _short_entries(value: Mapping[str, str]) -> Mapping[str, str]:
    for key, text in value.items():
        if len(key) > MAX_METADATA_KEY or len(text) > MAX_METADATA_VALUE:
            raise wrong(f"A key has at most {MAX_METADATA_KEY} characters, a value {MAX_METADATA_VALUE}.")
    return value


_Metadata = Annotated[
    dict[str, str],
    BeforeValidator(_few_entries),
    AfterValidator(_short_entries),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_METADATA,
            "propertyNames": {"maxLength": MAX_METADATA_KEY},
            "additionalProperties": {"type": "string", "maxLength": MAX_METADATA_VALUE},
        }
    ),
]


_NOT_BLANK: Final[dict[str, Any]] = {"pattern": r"\S"}


def _says_something(prompt: str) -> str:
    if not prompt.strip():
        raise wrong("The prompt is blank.")
    return prompt


_ONE_CONVERSATION: Final[dict[str, Any]] = {
    "oneOf": [
        {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
        {"required": ["messages"], "properties": {"messages": {"type": "array"}}},
    ]
}


_AGENT_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}", re.ASCII)
_FORK: Final = "fork"
"""Claude Code's word for a subagent that is none of those that were defined."""
_SERVER: Final = re.compile(SERVER, re.ASCII)
_CONTROL: Final = re.compile(r"[\x00\n\r]")


def _is_rule(rule: str) -> str:
    if (why := wrong_rule(rule)) is not None:
        raise wrong(why)
    return rule


def _is_agents_name(name: str) -> str:
    if not _AGENT_NAME.fullmatch(name) or name == _FORK:
        raise wrong("A name has at most 64 letters, digits, dashes and underscores, a letter first; and is not `fork`.")
    return name


def _is_server(name: str) -> str:
    if not _SERVER.fullmatch(name):
        raise wrong("This is not the name of a configured server.")
    return name


def _is_tool(name: str) -> str:
    if name not in TOOLS:
        raise wrong(f"There are the tools {', '.join(TOOLS)}.")
    return name


def _is_path(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/") or _CONTROL.search(path):
        raise wrong("This must be an absolute path, and without `..`.")
    return path


_Rule = Annotated[
    str,
    Field(min_length=1, max_length=MAX_RULE),
    AfterValidator(_is_rule),
    WithJsonSchema({"type": "string", "pattern": f"^(({'|'.join(TOOLS)})({PATTERN})?|{SERVER_RULE})$"}),
]
_Rules = Annotated[list[_Rule], Field(max_length=MAX_RULES)]
_Path = Annotated[
    str,
    Field(min_length=1, max_length=MAX_PATH),
    AfterValidator(_is_path),
    WithJsonSchema({"type": "string", "maxLength": MAX_PATH, "pattern": r"^/(?!(.*/)?\.\.(/|$))[^\x00\n\r]*$"}),
]


_Server = Annotated[
    str,
    AfterValidator(_is_server),
    WithJsonSchema({"type": "string", "pattern": f"^{SERVER}$"}),
]


_Tool = Annotated[str, AfterValidator(_is_tool), WithJsonSchema({"enum": list(TOOLS)})]


class Agent(Strict):
    """A subagent, which the task's own agent may start for a part of the work. It has nothing but what stands here."""

    description: Annotated[
        str,
        Field(min_length=1, max_length=MAX_DESCRIPTION, json_schema_extra=_NOT_BLANK),
        AfterValidator(_says_something),
    ]
    """When to start it: the model chooses by this."""
    prompt: Annotated[
        str,
        Field(min_length=1, max_length=MAX_AGENT_PROMPT, json_schema_extra=_NOT_BLANK),
        AfterValidator(_says_something),
    ]
    """Its system prompt."""
    tools: Annotated[list[_Tool], Field(max_length=len(TOOLS))] | None = None
    """Some of the task's own; without this, all of them, those of its MCP servers included."""
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """That of the task, without this."""
    max_turns: Annotated[int, Field(ge=1, le=MAX_TURNS)] | None = None


_Agents = Annotated[
    dict[Annotated[str, AfterValidator(_is_agents_name)], Agent],
    BeforeValidator(_few_agents),
    Field(
        json_schema_extra={
            "maxProperties": MAX_AGENTS,
            "propertyNames": {"pattern": f"^(?!fork$){_AGENT_NAME.pattern}$"},
        }
    ),
]


class Tools(Strict):
    """What the agent may use. A rule is a tool's name, or a name with a pattern: ``Bash(git *)``. Of an MCP server that
    the task names, ``mcp__NAME`` is every tool and ``mcp__NAME__TOOL`` is one.

    Patterns keep an agent tidy; they confine nothing: what ``Bash(git *)`` starts may start anything. Only the sandbox
    confines.
    """

    allow: _Rules = Field(default_factory=list)
    deny: _Rules = Field(default_factory=list)
    """Always wins."""
    approval: Literal["never", "ask", "auto"] = "never"
    """What becomes of a call that no rule allows: denied, asked for, or allowed."""


_FORK_OF_ONE: Final[dict[str, Any]] = {
    "anyOf": [
        {"properties": {"fork": {"const": False}}},
        {"required": ["id"], "properties": {"id": {"type": "string"}}},
    ]
}


class TaskSession(Strict):
    """The conversation that the task is a turn of: a new one for ``{}``, else the one of this id, or a copy of it.

    One turn of it goes on at a time, in the order of submission. Its ``cwd``, ``add_dirs`` and ``system`` are those of
    its first turn; model and tools may be others each time.
    """

    model_config = ConfigDict(json_schema_extra=_FORK_OF_ONE)

    id: Annotated[str, Field(min_length=1, max_length=MAX_SESSION_ID)] | None = None
    fork: bool = False

    @model_validator(mode="after")
    def _fork_of_one(self) -> TaskSession:
        if self.fork and self.id is None:
            raise wrong("A fork needs the `id` of the session that it begins as.")
        return self


class TaskRequest(Strict):
    """``POST /v1/tasks``: work that goes on whether anybody waits for it or not."""

    model_config = ConfigDict(json_schema_extra=_ONE_CONVERSATION)

    prompt: (
        Annotated[str, Field(min_length=1, json_schema_extra=_NOT_BLANK), AfterValidator(_says_something)] | None
    ) = None
    """The whole conversation, where it is one message; else ``messages``."""
    messages: (
        Annotated[list[Annotated[InputMessage, ONE_OF_MANY]], Field(min_length=1, max_length=MAX_MESSAGES)] | None
    ) = None
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    system: System | None = None
    append_system: str | None = None
    max_turns: Annotated[int, Field(ge=1, le=MAX_TURNS)] | None = None
    """Answers of models at most, subagents' included; a task without tools makes one. One that is tried again counts
    once; what Claude Code asks for its own ends, such as whether a model exists, does not count."""
    timeout_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S, allow_inf_nan=False)] | None = None
    """From the submission on, waiting included."""
    output_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] = 0
    webhook: Annotated[str, Field(min_length=1, max_length=2048)] | None = None
    metadata: _Metadata = Field(default_factory=dict)

    tools: Tools | None = None
    """With any, the task is an agent's: it may make many model calls, and acts where ``cwd`` says."""
    cwd: _Path | None = None
    """The directory it works in, under a configured root; without one, an empty one that ends with the attempt."""
    add_dirs: Annotated[list[_Path], Field(max_length=MAX_DIRS)] | None = None
    max_cost_usd: Annotated[float, Field(gt=0, le=MAX_COST_USD, allow_inf_nan=False)] | None = None
    """No further model call is made once so much is spent."""

    mcp_servers: Annotated[list[_Server], Field(max_length=MAX_SERVERS)] | None = None
    """Names of servers that the operator has configured; what of them may be used, ``tools`` says."""
    agents: _Agents | None = None
    """Subagents by name."""
    project_settings: Literal["none", "all"] | None = None
    """All: the settings, hooks and CLAUDE.md of ``cwd`` count, under a root that the operator trusts."""
    session: TaskSession | None = None
    """With one, the task is a turn of a conversation, and its one message what is said next."""

    @model_validator(mode="after")
    def _one_conversation(self) -> TaskRequest:
        if (self.prompt is None) == (self.messages is None):
            raise wrong("Exactly one of `prompt` and `messages` is needed.")
        return self

    def inner(self) -> dict[str, Any]:
        """The Messages API request that the task is, but for its model's real name."""
        if self.messages is not None:
            messages = [message.model_dump(exclude_unset=True) for message in self.messages]
        else:
            messages = [{"role": "user", "content": self.prompt}]
        request: dict[str, Any] = {"model": self.model, "messages": messages}
        if system := self._system():
            request["system"] = system
        if self.output_schema is not None:
            request["output_config"] = {"format": {"type": "json_schema", "schema": self.output_schema}}
        return request

    def agent(self) -> AgentSpec | None:
        """What an agent needs to be told; None for a task that needs none: one model call answers it."""
        tools = self.tools or Tools()
        if not self._acts:
            return None
        return AgentSpec(
            allow=tuple(tools.allow),
            deny=tuple(tools.deny),
            approval=Approval(tools.approval),
            cwd=self.cwd,
            add_dirs=tuple(self.add_dirs or ()),
            max_turns=self.max_turns,
            max_cost_micro_usd=None if self.max_cost_usd is None else max(1, round(self.max_cost_usd * MICRO)),
            append_system=None if self.system else self.append_system or None,
            mcp_servers=tuple(dict.fromkeys(self.mcp_servers or ())),
            agents=tuple(
                Subagent(
                    name=name,
                    description=one.description,
                    prompt=one.prompt,
                    tools=None if one.tools is None else tuple(one.tools),
                    model=one.model,
                    max_turns=one.max_turns,
                )
                for name, one in (self.agents or {}).items()
            ),
            project_settings=self.project_settings == "all",
        )

    @property
    def _acts(self) -> bool:
        """Whether it is an agent's."""
        tools = self.tools or Tools()
        acts = tools.allow or tools.approval != "never"
        more = self.mcp_servers or self.agents or self.project_settings == "all" or self.session is not None
        return bool(acts or more or self.cwd is not None or self.add_dirs or self.max_cost_usd is not None)

    def _system(self) -> str | list[dict[str, Any]]:
        given = self.system or ""
        blocks = given if isinstance(given, str) else [block.model_dump(exclude_unset=True) for block in given]
        if not self.append_system or (self._acts and not blocks):
            return blocks
        if isinstance(blocks, str):
            return f"{blocks}\n\n{self.append_system}" if blocks else self.append_system
        return [*blocks, {"type": "text", "text": self.append_system}]


class ApprovalAnswer(Strict):
    """``POST /v1/tasks/{id}/approvals/{approval}``."""

    allow: bool
    message: Annotated[str, Field(max_length=MAX_MESSAGE)] = ""
    """What the model is told with a denial."""


def parse_answer(body: bytes) -> ApprovalAnswer:
    """Raises Refusal as ``parse.parse`` does."""
    return validate(ApprovalAnswer, load(body))


def parse_task(body: bytes) -> TaskRequest:
    """Raises Refusal as ``parse.parse`` does."""
    return validate(TaskRequest, load(body))


class BatchRequest(Strict):
    """``POST /v1/batches``. Its tasks are looked at one by one: a faulty one does not hold up the others."""

    tasks: Annotated[list[Annotated[dict[str, Any], ONE_OF_MANY]], Field(min_length=1, max_length=MAX_BATCH)]


def parse_batch(body: bytes) -> Sequence[Mapping[str, Any]]:
    """The submissions, not yet looked at. Raises Refusal as ``parse.parse`` does."""
    return validate(BatchRequest, load(body)).tasks


def task_of(document: Mapping[str, Any]) -> TaskRequest:
    """One submission of a batch. Raises Refusal."""
    return validate(TaskRequest, document)


def canonical(document: Mapping[str, Any]) -> bytes:
    """The same bytes for the same submission, however it was written: what an idempotency key is compared by."""
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def task_document(task: Task) -> dict[str, Any]:
    """A task as it is told everywhere. Times are seconds since the epoch, costs USD."""
    outcome = task.outcome if task.state.terminal else None
    return {
        "id": task.id,
        "object": "task",
        "kind": task.spec.kind.value,
        "state": task.state.value,
        "created_at": task.created_at,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "cancel_requested_at": task.cancel_requested_at,
        "model": task.spec.model,
        "lane": task.spec.lane.value,
        "session_id": task.spec.session.id if task.spec.session is not None else None,
        "attempt": task.attempt,
        "result": _result(outcome),
        "usage": usage_document(outcome.usage) if outcome is not None else None,
        "cost_usd": _usd(outcome.cost_micro_usd) if outcome is not None else None,
        "error": error_document(outcome.failure) if outcome is not None else None,
        "last_seq": task.last_seq,
        "batch_id": task.batch_id,
        "priority": task.spec.priority,
        "metadata": dict(task.spec.metadata),
    }


def _result(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None or (outcome.text is None and outcome.diff is None and not outcome.files):
        return None
    return {
        "text": outcome.text,
        "structured": outcome.structured,
        "stop_reason": outcome.stop_reason,
        "diff": outcome.diff,
        "files": list(outcome.files),
    }


def _usd(micro_usd: int | None) -> float | None:
    return None if micro_usd is None else usd(micro_usd)


def usage_document(usage: Usage) -> dict[str, int]:
    return usage.told


def error_document(failure: Failure | None) -> dict[str, Any] | None:
    """What went wrong, as tasks and WebSocket messages tell it."""
    if failure is None:
        return None
    told: dict[str, Any] = {"code": failure.code.value, "message": failure.message}
    if failure.faults:
        told["errors"] = [{"path": fault.path, "message": fault.message} for fault in failure.faults]
    elif failure.param is not None:
        told["errors"] = [{"path": failure.param, "message": failure.message}]
    if failure.retry_after_seconds is not None:
        told["retry_after_s"] = failure.retry_after_seconds
    return told


def list_document(documents: Sequence[Mapping[str, Any]], following: str | None) -> dict[str, Any]:
    return {"object": "list", "data": documents, "next": following}


__all__ = [
    "ApprovalAnswer",
    "BatchRequest",
    "TaskRequest",
    "canonical",
    "error_document",
    "list_document",
    "parse_answer",
    "parse_batch",
    "parse_task",
    "task_document",
    "task_of",
    "usage_document",
]
