"""Which shapes of agents deserve a process that waits for them."""

from __future__ import annotations

import os
from pathlib import Path

from claude_daemon.core.agent import AgentSpec
from claude_daemon.engine.agent_spares import Wanted, identity
from claude_daemon.engine.sandbox import open_beneath

READS = AgentSpec(allow=("Read",))
BUILDS = AgentSpec(allow=("Bash",), cwd="/srv/a")
EDITS = AgentSpec(allow=("Edit",))


def wanted(*seen: AgentSpec) -> Wanted:
    found = Wanted()
    for outline in seen:
        found.note(outline)
    return found


def test_a_shape_that_came_once_gets_none() -> None:
    assert wanted(READS, BUILDS, EDITS).most(3) == []


def test_those_seen_most_come_first() -> None:
    assert wanted(READS, BUILDS, READS, BUILDS, BUILDS, EDITS).most(2) == [BUILDS, READS]
    assert wanted(READS, BUILDS, READS, BUILDS, BUILDS).most(1) == [BUILDS]
    assert wanted(READS, READS).most(0) == []


def test_of_two_seen_as_often_the_last_one_counts() -> None:
    assert wanted(READS, READS, BUILDS, BUILDS).most(1) == [BUILDS]


def test_what_was_long_ago_is_forgotten() -> None:
    assert wanted(READS, READS, *[AgentSpec(cwd=f"/srv/{n}") for n in range(32)]).most(4) == []


def test_limits_are_no_part_of_a_shape() -> None:
    assert AgentSpec(allow=("Bash",), cwd="/srv/a", max_turns=3, max_cost_micro_usd=5).outline == BUILDS


def test_a_directory_of_the_same_name_is_another_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    before = open_beneath(tmp_path, "a")
    (tmp_path / "a").rename(tmp_path / "b")  # kept, so that its inode is not used again
    (tmp_path / "a").mkdir()
    after = open_beneath(tmp_path, "a")
    assert identity([before]) != identity([after])
    assert identity([before]) == identity([before])
    os.close(before.fd)
    os.close(after.fd)
