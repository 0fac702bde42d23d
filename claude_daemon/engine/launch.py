"""How a worker is started: argv and environment, pure.

Prompts never appear in argv. The environment is built from an allow-list; nothing of the daemon's own leaks in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import orjson

from claude_daemon.core.agent import STARTS_AGENTS, AgentSpec, Approval
from claude_daemon.engine import client_tools

# What a worker may see of the daemon's own environment: the way to the network, where a login needs it.
_NETWORK_VARIABLES = (
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "https_proxy",
    "http_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
)
_PATH = "/usr/local/bin:/usr/bin:/bin"
# With these a CLI asks nobody for anything but what it was started for.
QUIET: Mapping[str, str] = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_AUTOUPDATER": "1",
}
# Marks a worker, and whatever it leaves behind, as ours: see ledger and strays.
NONCE_VARIABLE = "CLAUDE_DAEMON_WORKER"


# Of a worker's environment, what a project's settings may change: where programs and files are.
_FREE: Final = frozenset({"PATH", "LANG", "HOME", "TMPDIR"})
# Other ways to a model than the broker, as a project's settings could choose them. Held empty, each is as if unset.
_ELSEWHERE: Final = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_CUSTOM_HEADERS",
    "ANTHROPIC_UNIX_SOCKET",
    "CLAUDE_CODE_API_BASE_URL",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_ANTHROPIC_AWS",
    "CLAUDE_CODE_USE_ANTHROPIC_GOOGLE_CLOUD",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_FOUNDRY",
    "CLAUDE_CODE_USE_GATEWAY",
    "CLAUDE_CODE_USE_MANTLE",
    "CLAUDE_CODE_USE_VERTEX",
    "ALL_PROXY",
    "all_proxy",
    *_NETWORK_VARIABLES,
)


class Access(StrEnum):
    """How a worker reaches the model."""

    BROKER = "broker"  # a token of its own for the daemon's loopback broker
    OAUTH = "oauth"  # CLAUDE_CODE_OAUTH_TOKEN, used by the CLI itself
    LOGIN = "login"  # a login in the user's home, used in place by the CLI itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Everything that is fixed when a worker is spawned. ``agent`` None: a text worker.

    ``system_prompt_file`` and ``schema`` are only for CLIs that cannot be bound later by ``initialize``. ``token`` is
    the worker's own for the broker, or the OAuth token. ``session_id`` names the conversation that begins, ``resume``
    the one that is gone on with; both, with ``fork``: the one begins as a copy of the other.
    """

    cli: Path
    model: str
    access: Access
    home: Path
    config_dir: Path
    nonce: str
    max_retries: int
    request_timeout_s: float
    bare: bool = True
    restricted: bool = True
    permission_prompts: bool = True
    hooks: bool = True
    todo_list: bool = True
    session_persistence: bool = False
    base_url: str | None = None
    token: str | None = field(default=None, repr=False)
    system_prompt_file: Path | None = None
    schema: str | None = None
    session_id: str | None = None
    resume: str | None = None
    fork: bool = False
    agent: AgentSpec | None = None
    add_dirs: tuple[Path, ...] = ()

    @property
    def settings_file(self) -> Path | None:
        """Where that is told which no project's settings may change; None where none are read. In the HOME, which is
        new: what a session's earlier turns have left in its configuration directory could lead elsewhere."""
        reads = self.agent is not None and self.agent.project_settings
        return self.home / "held.json" if reads else None


def argv(launch: Launch) -> list[str]:
    """The command line. An empty system prompt is set at spawn: ``initialize`` replaces it where one is asked for."""
    args = [str(launch.cli), "--print", "--verbose"]
    args += ["--input-format=stream-json", "--output-format=stream-json", "--include-partial-messages"]
    args += ["--strict-mcp-config", f"--model={launch.model}"]
    if launch.settings_file is None:
        args.append("--setting-sources=")
    else:
        args += ["--setting-sources=user,project,local", f"--settings={launch.settings_file}"]
    args += _text(launch) if launch.agent is None else _agent(launch, launch.agent)
    if launch.restricted and launch.settings_file is None:  # it reads no settings of a project, whatever is asked
        args.append("--restricted")
    if launch.agent is not None and _asks(launch.agent, launch.hooks):
        args.append("--permission-prompt-tool=stdio")  # as the published SDK has its can_use_tool asked
    elif launch.permission_prompts:
        args.append("--permission-prompts=none")
    if not launch.session_persistence:
        args.append("--no-session-persistence")
    if launch.bare and launch.access is Access.BROKER and launch.agent is None:
        args.append("--bare")  # ignores OAuth tokens and logins, so only with a key; and runs no hooks
    if launch.schema is not None:
        args.append(f"--json-schema={launch.schema}")
    if launch.resume is not None:
        args.append(f"--resume={launch.resume}")
    if launch.fork:
        args.append("--fork-session")
    if launch.session_id is not None:
        args.append(f"--session-id={launch.session_id}")
    return args


def _text(launch: Launch) -> list[str]:
    """No tools but a client's own, which may be offered later and which nobody runs."""
    tools = ["--tools=", f"--allowedTools={client_tools.ALLOWED}"]
    if launch.system_prompt_file is not None:
        return [*tools, f"--system-prompt-file={launch.system_prompt_file}"]
    return [*tools, "--system-prompt="]


def _agent(launch: Launch, agent: AgentSpec) -> list[str]:
    """Its system prompt is Claude Code's own, or set by ``initialize``."""
    started = (STARTS_AGENTS,) if agent.agents else ()
    args = [f"--tools={','.join((*agent.tools, *started))}"]
    if allow := (*agent.allow, *started):
        args.append(f"--allowedTools={','.join(allow)}")
    if agent.deny:
        args.append(f"--disallowedTools={','.join(agent.deny)}")
    return args + [f"--add-dir={path}" for path in launch.add_dirs]


def _asks(agent: AgentSpec, hooks: bool) -> bool:
    """Whether we are asked for what no rule allows; where all of it is allowed, a hook says so before."""
    return agent.approval is Approval.ASK or (agent.approval is Approval.AUTO and not hooks)


def environment(launch: Launch, daemon_environment: Mapping[str, str]) -> dict[str, str]:
    """The worker's whole environment; of the daemon's own only the network variables, and only for logins."""
    env = {
        "PATH": _PATH,
        "LANG": "C.UTF-8",
        "HOME": str(launch.home),
        "TMPDIR": str(launch.home / "tmp"),
        "CLAUDE_CONFIG_DIR": str(launch.config_dir),
        **QUIET,
        "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
        "CLAUDE_CODE_MAX_RETRIES": str(launch.max_retries),
        "API_TIMEOUT_MS": str(int(launch.request_timeout_s * 1000)),
        "ENABLE_TOOL_SEARCH": "false",
        NONCE_VARIABLE: launch.nonce,
    }
    if launch.agent is not None and launch.todo_list:
        env["CLAUDE_CODE_ENABLE_TASKS"] = "0"  # else there is no TodoWrite, whoever is allowed it
    if launch.base_url is not None:
        env["ANTHROPIC_BASE_URL"] = launch.base_url
    if launch.access is Access.BROKER and launch.token is not None:
        env["ANTHROPIC_API_KEY"] = launch.token
    elif launch.access is Access.OAUTH and launch.token is not None:
        env["CLAUDE_CODE_OAUTH_TOKEN"] = launch.token
    if launch.access is not Access.BROKER:
        env |= {name: daemon_environment[name] for name in _NETWORK_VARIABLES if name in daemon_environment}
    if launch.access is Access.LOGIN:
        env["HOME"] = daemon_environment.get("HOME", str(launch.home))
        if "CLAUDE_CONFIG_DIR" in daemon_environment:
            env["CLAUDE_CONFIG_DIR"] = daemon_environment["CLAUDE_CONFIG_DIR"]
        else:
            del env["CLAUDE_CONFIG_DIR"]
    return env


def held_settings(env: Mapping[str, str]) -> bytes:
    """Settings that go before a project's own: the way to the model, and what this worker was started for.

    Measured: without them a project's ``env`` sends the worker's token and every prompt to another address, by
    ``ANTHROPIC_BASE_URL``, a proxy or another provider; and its ``disableAllHooks`` would take ours away.
    """
    held = {**dict.fromkeys(_ELSEWHERE, ""), **{name: value for name, value in env.items() if name not in _FREE}}
    return orjson.dumps({"env": held, "disableAllHooks": False})
