"""The pure parts of the engine: launch, plan, fill, failures, capabilities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.core.agent import AgentSpec, Subagent
from claude_daemon.core.task import Kind, Lane, TaskSpec
from claude_daemon.core.worker import WorkerState
from claude_daemon.engine.capabilities import ROWS, Capabilities
from claude_daemon.engine.failures import Failures
from claude_daemon.engine.fill import Sizes, fill, next_worn, spares_now, surplus
from claude_daemon.engine.floors import IN_USE_S, JUST_USED_S, Asked
from claude_daemon.engine.launch import Access, Launch, argv, environment, held_settings
from claude_daemon.engine.plan import Binding, Shape, TurnPlan, plan, without_commands
from claude_daemon.engine.worker import Worker

SECRETS = {
    "ANTHROPIC_API_KEY": "leak-1",
    "ANTHROPIC_AUTH_TOKEN": "leak-2",
    "CLAUDE_CODE_OAUTH_TOKEN": "leak-3",
    "CLAUDE_DAEMON_HTTP__PORT": "leak-4",
    "CREDENTIALS_DIRECTORY": "leak-5",
    "NOTIFY_SOCKET": "leak-6",
    "LISTEN_FDS": "leak-7",
    "WATCHDOG_USEC": "leak-8",
    "CLAUDECODE": "leak-9",
    "CLAUDE_CODE_ENTRYPOINT": "leak-10",
    "AWS_SECRET_ACCESS_KEY": "leak-11",
    "LD_PRELOAD": "leak-12",
    "NODE_OPTIONS": "leak-13",
    "PATH": "leak-14",
}


def launch(**fields: Any) -> Launch:
    given_fields: dict[str, Any] = {
        "cli": Path("/opt/claude"),
        "model": "sonnet",
        "access": Access.BROKER,
        "home": Path("/engine/homes/w"),
        "config_dir": Path("/engine/config"),
        "nonce": "n",
        "max_retries": 2,
        "request_timeout_s": 600,
        "base_url": "http://127.0.0.1:1",
        "token": "cdw_token",
    }
    return Launch(**{**given_fields, **fields})


def test_every_worker_has_the_launch_profile() -> None:
    args = argv(launch())
    assert {"--restricted", "--setting-sources=", "--strict-mcp-config", "--permission-prompts=none"} <= set(args)
    assert {"--no-session-persistence", "--bare", "--tools=", "--print", "--system-prompt="} <= set(args)
    assert "cdw_token" not in " ".join(args)
    assert "cdw_token" not in repr(launch())


def test_what_starts_subagents_is_there_where_some_are_defined() -> None:
    agent = AgentSpec(allow=("Read",), deny=("Bash",))
    assert {"--tools=Read", "--allowedTools=Read"} <= set(argv(launch(agent=agent)))
    helper = Subagent(name="helper", description="d", prompt="of the helper")
    args = argv(launch(agent=replace(agent, agents=(helper,))))
    assert {"--tools=Read,Agent", "--allowedTools=Read,Agent"} <= set(args)
    assert "of the helper" not in " ".join(args)


def test_settings_of_a_project_are_read_beneath_our_own() -> None:
    agent = launch(agent=AgentSpec(project_settings=True))
    args = argv(agent)
    assert {"--setting-sources=user,project,local", "--settings=/engine/homes/w/held.json"} <= set(args)
    assert not {"--restricted", "--setting-sources="} & set(args)
    held = orjson.loads(held_settings(environment(agent, {})))
    assert held["env"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:1"
    assert held["env"]["HTTPS_PROXY"] == held["env"]["CLAUDE_CODE_USE_BEDROCK"] == ""
    assert not {"PATH", "HOME", "TMPDIR"} & set(held["env"])
    assert launch(agent=AgentSpec()).settings_file is None


@pytest.mark.parametrize("access", [Access.OAUTH, Access.LOGIN])
def test_a_login_is_never_started_bare(access: Access) -> None:
    assert "--bare" not in argv(launch(access=access))


def test_what_cannot_be_bound_later_is_fixed_at_the_spawn_and_no_prompt_is_in_argv() -> None:
    args = argv(
        launch(system_prompt_file=Path("/p"), schema="{}", resume="s", restricted=False, permission_prompts=False)
    )
    assert {"--system-prompt-file=/p", "--json-schema={}", "--resume=s"} <= set(args)
    assert "--no-session-persistence" in args
    assert not {"--restricted", "--permission-prompts=none", "--system-prompt="} & set(args)


def test_a_fork_names_what_it_begins_as_and_what_it_becomes() -> None:
    args = argv(launch(resume="old", session_id="new", fork=True, session_persistence=True, agent=AgentSpec()))
    assert {"--resume=old", "--fork-session", "--session-id=new"} <= set(args)
    assert "--no-session-persistence" not in args


@pytest.mark.parametrize("access", list(Access))
def test_nothing_of_the_daemons_environment_leaks(access: Access) -> None:
    env = environment(launch(access=access), {**SECRETS, "HTTPS_PROXY": "http://p", "HOME": "/home/u"})
    assert not any("leak-" in value for value in env.values())
    assert ("HTTPS_PROXY" in env) is (access is not Access.BROKER)
    assert env["HOME"] == ("/home/u" if access is Access.LOGIN else "/engine/homes/w")
    held = {name for name, value in env.items() if value == "cdw_token"}
    expected = {Access.BROKER: {"ANTHROPIC_API_KEY"}, Access.OAUTH: {"CLAUDE_CODE_OAUTH_TOKEN"}, Access.LOGIN: set()}
    assert held == expected[access]
    assert ("CLAUDE_CONFIG_DIR" in env) is (access is not Access.LOGIN)


def test_a_logins_own_config_directory_is_used_in_place() -> None:
    env = environment(launch(access=Access.LOGIN), {"CLAUDE_CONFIG_DIR": "/c"})
    assert env["CLAUDE_CONFIG_DIR"] == "/c"


def spec(**request: Any) -> TaskSpec:
    return TaskSpec(
        kind=Kind.CHAT,
        lane=Lane.TEXT,
        request={"model": "m", "messages": [{"role": "user", "content": "hi"}], **request},
        key_id="k",
        trust_domain="default",
        request_id="r",
    )


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def test_a_conversation_becomes_exchanges_and_a_last_message() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": [text("b", cache_control={"type": "ephemeral"})]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "x", "signature": "s"}, text("c")]},
        {"role": "user", "content": "d"},
    ]
    made = plan(spec(messages=messages))
    assert list(made.history) == [([text("a"), text("b")], [text("c")])]
    assert made.last == "d"


def looped(**request: Any) -> TurnPlan:
    """A loop of two rounds after an older answer that was thought about too."""
    thought = {"type": "thinking", "thinking": "x", "signature": "s"}
    calls: list[dict[str, Any]] = [
        {"type": "tool_use", "id": f"t{n}", "name": "look", "input": {}, "caller": None} for n in range(2)
    ]
    mark = {"cache_control": {"type": "ephemeral"}}
    results = [{"type": "tool_result", "tool_use_id": f"t{n}", "content": [text("r", **mark)]} for n in range(2)]
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [thought, text("b")]},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": [thought, calls[0]]},
        {"role": "user", "content": results[:1]},
        {"role": "assistant", "content": [calls[1]]},
        {"role": "user", "content": results[1:]},
    ]
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    return plan(spec(**{"messages": messages, "tools": tools, **request}))


def test_calls_and_results_are_history_under_the_names_upstream() -> None:
    made = looped()
    assert [[block["type"] for block in answer] for _, answer in made.history] == [["text"], ["tool_use"], ["tool_use"]]
    call = {"type": "tool_use", "id": "t0", "name": "mcp__c__look", "input": {}}
    assert made.history[1][1] == [call]
    assert made.history[2][0] == [{"type": "tool_result", "tool_use_id": "t0", "content": [text("r")]}]
    assert made.last == [{"type": "tool_result", "tool_use_id": "t1", "content": [text("r")]}]


def test_thinking_is_kept_only_in_front_of_the_calls_whose_results_come_last() -> None:
    made = looped(thinking={"type": "enabled", "budget_tokens": 1024})
    assert [[block["type"] for block in answer] for _, answer in made.history] == [
        ["text"],
        ["thinking", "tool_use"],
        ["tool_use"],
    ]


def test_a_process_is_bound_to_its_tools() -> None:
    made = looped()
    assert made.tools == {"look"}
    assert not made.binding.plain
    assert made.binding != replace(made.binding, tools=None)
    assert "look" not in f"{made.binding!r}{made.binding.label}"


def test_an_answer_of_nothing_but_thinking_is_left_out() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]},
        {"role": "user", "content": "b"},
    ]
    made = plan(spec(messages=messages))
    assert (made.history, made.last) == ([], [text("a"), text("b")])


@pytest.mark.parametrize(
    ("thinking", "shown", "tokens"),
    [(None, False, 0), ({"type": "disabled"}, False, 0), ({"type": "adaptive"}, True, None),
     ({"type": "enabled", "budget_tokens": 2048}, True, 2048)],
)  # fmt: skip
def test_thinking_is_off_unless_asked_for(thinking: Any, shown: bool, tokens: int | None) -> None:
    made = plan(spec(thinking=thinking))
    assert (made.show_thinking, made.thinking_tokens) == (shown, tokens)


def test_a_binding_is_the_system_prompt_and_the_schema() -> None:
    assert plan(spec()).binding.plain
    assert plan(spec()).binding.label == "plain"
    one, other = plan(spec(system="S")).binding, plan(spec(system=[text("S")])).binding
    assert one == other and not one.plain and "S" not in one.label


def test_history_can_be_told_in_the_prompt() -> None:
    messages = [{"role": r, "content": c} for r, c in [("user", "a"), ("assistant", "b"), ("user", "c")]]
    told = [block["text"] for block in plan(spec(messages=messages)).told_at_once() if not isinstance(block, str)]
    assert [said for said in told if said in "abc"] == ["a", "b", "c"]
    assert plan(spec()).told_at_once() == "hi"


def test_without_composed_no_text_begins_with_a_command() -> None:
    assert without_commands("/clear") == "\n/clear"
    assert without_commands("hi /clear") == "hi /clear"
    image = {"type": "image", "source": {}}
    assert without_commands([text("/clear"), image]) == [text("\n/clear"), image]


def test_a_capability_can_be_forced_off_and_a_wrong_name_cannot() -> None:
    assert Capabilities().missing() == []
    for name in ROWS:
        assert Capabilities().without([name]).missing() == [name]
    with pytest.raises(ValueError, match="no such capability: wings"):
        Capabilities().without(["wings"])


USUAL = Shape(model="sonnet")
BOUND = Binding(trust_domain="default", system="S")
LIVE = [WorkerState.STARTING, WorkerState.IDLE, WorkerState.BUSY, WorkerState.RECYCLING, WorkerState.RETIRING]


def worker(
    state: WorkerState, *, bound: bool = False, used: float = 0.0, wanted: Shape = USUAL, domain: str = "default"
) -> Worker:
    made = Worker(f"w{used}", None, "sonnet", Capabilities(), wanted)
    made.state, made.last_used = state, used
    made.binding = replace(BOUND, trust_domain=domain) if bound else None
    made.turns = 1 if bound else 0
    return made


WORKERS = st.lists(
    st.builds(worker, st.sampled_from(LIVE), bound=st.booleans(), used=st.floats(0, 9), domain=st.sampled_from("abc")),
    max_size=10,
)
SIZES = st.builds(Sizes, workers=st.integers(1, 4), spares=st.integers(0, 3), starting=st.integers(1, 3))


def asked_by(domain: str, shape: Shape = USUAL) -> Asked:
    return Asked(shape=shape, trust_domain=domain)


WAITING = st.one_of(
    st.none(), st.builds(asked_by, st.sampled_from("ab"), st.sampled_from([USUAL, Shape(model="opus")]))
)


@given(WORKERS, SIZES, WAITING)
def test_filling_keeps_to_the_limit_and_takes_nobody_who_is_needed(
    workers: list[Worker], sizes: Sizes, asked: Asked | None
) -> None:
    change = fill(workers, sizes, USUAL, 10.0, asked)
    live = [w for w in workers if w.state is not WorkerState.RETIRING]
    assert all(w.state is WorkerState.IDLE for w in change.retire)
    after = len(live) - len(change.retire) + len(change.start)
    assert after <= max(sizes.limit, len(live), len(live) + 1 if asked else 0)
    starting = sum(w.state is WorkerState.STARTING for w in workers)
    if asked is None or asked.shape == USUAL:
        assert len(change.start) + starting <= max(sizes.starting, starting)
    if change.retire:
        assert len(change.retire) <= len(change.start)


@given(WORKERS, SIZES)
def test_filling_comes_to_rest(workers: list[Worker], sizes: Sizes) -> None:
    """Done again and again, with every start succeeding, it ends: nobody is started only to be retired."""
    for _ in range(20):
        change = fill(workers, sizes, USUAL, 10.0)
        workers = [w for w in workers if w not in change.retire] + [worker(WorkerState.IDLE) for _ in change.start]
        workers = [worker(WorkerState.IDLE) if w.state is WorkerState.STARTING else w for w in workers]
    assert not fill(workers, sizes, USUAL, 10.0).start
    unbound = sum(w.binding is None and w.state in (WorkerState.IDLE, WorkerState.STARTING) for w in workers)
    several = len({w.binding.trust_domain for w in workers if w.binding is not None}) > 1
    movable = [w for w in workers if w.state is WorkerState.IDLE and w.binding is not None and not several]
    assert unbound >= sizes.spares or not movable


def test_who_waits_gets_a_process_at_the_expense_of_the_least_used() -> None:
    old, new = worker(WorkerState.IDLE, bound=True, used=1), worker(WorkerState.IDLE, bound=True, used=2)
    sizes = Sizes(workers=2, spares=0, starting=1)
    change = fill([old, new], sizes, USUAL, 10.0, asked_by("default"))
    assert (list(change.retire), list(change.start)) == ([old], [USUAL])
    special = Shape(model="opus")
    waits = asked_by("default", special)
    assert list(fill([old, new], sizes, USUAL, 10.0, waits).start) == [special]
    under_way = worker(WorkerState.STARTING, wanted=special)
    assert list(fill([old, new, under_way], sizes, USUAL, 10.0, waits).start) == []


def test_after_a_burst_the_least_used_go() -> None:
    idle = [worker(WorkerState.IDLE, bound=True, used=float(n)) for n in range(4)]
    assert surplus(idle, Sizes(workers=2, spares=1, starting=1), USUAL, 10.0) == [idle[0]]


NOW = 1000.0
POOL = Sizes(workers=4, spares=1, starting=1)


def busy(domain: str, number: int = 1) -> list[Worker]:
    return [worker(WorkerState.BUSY, bound=True, used=NOW, domain=domain) for _ in range(number)]


def idle_for(domain: str, *ages: float) -> list[Worker]:
    return [worker(WorkerState.IDLE, bound=True, used=NOW - age, domain=domain) for age in ages]


def test_a_flood_takes_no_process_that_another_trust_domain_has_been_using() -> None:
    own = idle_for("b", 60.0, 200.0)
    for asked in (None, asked_by("a"), asked_by("a", Shape(model="opus"))):
        change = fill([*busy("a", 3), *own], POOL, USUAL, NOW, asked)
        assert (list(change.retire), list(change.start)) == ([], [])  # and it gets none beyond the limit
    stale = idle_for("b", IN_USE_S)
    for waits in (asked_by("a"), asked_by("a", Shape(model="opus"))):
        change = fill([*busy("a", 3), *stale, *own[:1]], POOL, USUAL, NOW, waits)
        assert (list(change.retire), list(change.start)) == (stale, [waits.shape])


def test_a_process_that_has_served_nobody_is_nobodys_floor() -> None:
    (unused,) = idle_for("b", 1.0)
    unused.turns = 0
    assert fill([*busy("a", 3), *busy("b"), unused], POOL, USUAL, NOW, asked_by("a")).retire == [unused]


def test_a_domain_keeps_no_more_than_an_even_share() -> None:
    three = idle_for("b", 60.0, 100.0, 200.0)
    change = fill([*busy("a", 2), *three], POOL, USUAL, NOW, asked_by("a"))
    assert (change.retire, list(change.start)) == (three[-1:], [USUAL])


def test_all_others_together_keep_no_more_than_half_of_the_pool_idle() -> None:
    others = [one for n, domain in enumerate("bcd") for one in idle_for(domain, 10.0 + n)]
    change = fill([*busy("a", 2), *others], POOL, USUAL, NOW, asked_by("a"))
    assert (change.retire, list(change.start)) == (others[-1:], [USUAL])
    change = fill([*busy("a", 3), *others[:2]], POOL, USUAL, NOW, asked_by("a"))
    assert (change.retire, change.start) == ([], [])


def test_who_comes_anew_has_a_process_at_the_expense_of_the_one_with_the_most() -> None:
    change = fill([*busy("a", 3), *idle_for("a", 0.01), *idle_for("b", 60.0)], POOL, USUAL, NOW, asked_by("c"))
    assert ([one.binding for one in change.retire], len(change.start)) == ([replace(BOUND, trust_domain="a")], 1)
    change = fill([*busy("a", 4), *idle_for("b", 60.0)], POOL, USUAL, NOW, asked_by("c"))
    assert (change.retire, len(change.start)) == ([], 1)  # or beyond the limit, until one of a flood can go


def test_more_domains_than_processes_take_turns() -> None:
    crowd = [one for n, domain in enumerate("abcde") for one in idle_for(domain, 10.0 + n)]
    change = fill(crowd, POOL, USUAL, NOW, asked_by("f"))
    assert (change.retire, len(change.start)) == (crowd[-1:], 1)
    half = [*busy("a"), *busy("b"), *busy("c"), *crowd[3:]]
    change = fill(half, POOL, USUAL, NOW, asked_by("f"))
    assert (change.retire, len(change.start)) == (crowd[-1:], 1)
    change = fill(half, POOL, USUAL, NOW, asked_by("a"))
    assert (change.retire, change.start) == ([], [])  # it has its share


def test_within_a_flood_of_one_of_several_no_spare_is_made_of_what_was_used_a_moment_ago() -> None:
    busy_floods = [*busy("a", 3), *busy("b")]
    assert fill([*busy_floods, *idle_for("a", 0.01)], POOL, USUAL, NOW).retire == []
    assert len(fill([*busy_floods, *idle_for("a", JUST_USED_S)], POOL, USUAL, NOW).retire) == 1
    alone = [*busy("a", 4), *idle_for("a", 0.01)]
    assert len(fill(alone, POOL, USUAL, NOW).retire) == 1


def test_what_is_to_go_goes_from_those_who_have_more_than_their_share_first() -> None:
    old, new = idle_for("b", 100.0), idle_for("a", 1.0, 2.0, 3.0)
    sizes = Sizes(workers=2, spares=0, starting=1)
    assert surplus([*old, *new], sizes, USUAL, NOW) == [new[2], new[1]]
    assert surplus([*old, *new], replace(sizes, workers=1), USUAL, NOW) == [old[0], new[2], new[1]]


def test_workers_that_are_worn_together_are_replaced_one_by_one() -> None:
    idle = [worker(WorkerState.IDLE, used=float(n)) for n in range(3)]
    idle[2].born -= 1
    assert next_worn(idle, lambda w: "old") == (idle[2], "old")
    assert next_worn(idle, lambda w: None) is None
    for state in (WorkerState.STARTING, WorkerState.RETIRING):
        assert next_worn([*idle, worker(state)], lambda w: "old") is None


@pytest.mark.parametrize(
    ("configured", "recent", "spares"), [(1, 0, 1), (1, 2, 2), (1, 99, 4), (3, 1, 3), (0, 99, 0), (6, 99, 6)]
)
def test_spares_follow_demand_where_any_are_wanted(configured: int, recent: int, spares: int) -> None:
    assert spares_now(configured, 4, recent) == spares


def test_starts_that_fail_are_tried_later_and_later_and_callers_sent_away() -> None:
    failures = Failures()
    delays = [failures.failed("no", 100.0, 0.999) for _ in range(12)]
    assert delays[0] == 0.0
    assert delays == sorted(delays)
    assert 0.4 < delays[1] < 0.6 and 29 < delays[-1] <= 30
    assert (failures.hopeless, failures.retry_at) == (True, 100.0 + delays[-1])
    failures.ready()
    assert (failures.hopeless, failures.count) == (False, 12)
    failures.proven()
    assert failures.count == 0


def test_a_process_that_was_proven_dies_without_consequence() -> None:
    failures = Failures()
    for _ in range(5):
        assert failures.crashed("killed", 0.0, 0.5, lived_seconds=3.0, turns=1) == 0.0
        assert failures.crashed("killed", 0.0, 0.5, lived_seconds=30.0, turns=0) == 0.0
    assert failures.count == 0
    assert [failures.crashed("x", 0.0, 0.0, lived_seconds=1.0, turns=0) for _ in range(3)] == [0.0, 0.25, 0.5]
    assert not failures.hopeless
