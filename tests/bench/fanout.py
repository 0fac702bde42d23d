"""What an event costs for each of its followers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from tests.bench.child import Child
from tests.bench.client import Unexpected
from tests.bench.edge import Produce, Produced
from tests.bench.followers import Expect, Follow, Followers, Seen
from tests.bench.measure import Row, Scale, Summary
from tests.bench.stage import Stage

FOLLOWERS = (1, 10, 100, 1000)
_AT_MOST_US = 2.0
_PACED_PER_S = 60.0
_WATCHED = 5
_WARM_UP_S = 0.3


class _Side:
    """One way to tell the same events to the same number of followers; blocks add up."""

    def __init__(self, edge: Child, task: str | None, followers: Followers) -> None:
        self._edge = edge
        self._task = task
        self._followers = followers
        self.costs_us: list[float] = []
        self.blocks: list[Produced] = []

    def block(self, seconds: float, per_s: float | None, *, counted: bool = True) -> None:
        """Raises :class:`Unexpected` unless everybody was given every event once and in order."""
        self._followers.begin()
        order = Produce(task=self._task, seconds=seconds, per_s=per_s)
        produced = Produced(**self._edge.ask(asdict(order)))
        for seen in self._followers.seen(Expect(bytes=produced.bytes)):
            _check(seen, produced)
        if counted:
            self.blocks.append(produced)
            self.costs_us.append(produced.cpu_s * 1e6 / (produced.events * self._followers.count))

    @property
    def told(self) -> dict[str, Any]:
        events, seconds = sum(b.events for b in self.blocks), sum(b.seconds for b in self.blocks)
        return {
            "events_per_s": round(events / seconds, 1),
            "deliveries_per_s": round(events * self._followers.count / seconds),
            "joined": round(events / sum(b.passes for b in self.blocks), 2),
            "cpu_share": round(sum(b.cpu_s for b in self.blocks) / seconds, 3),
        }


def _check(seen: Seen, produced: Produced) -> None:
    expected = list(range(produced.last - produced.events + 1, produced.last + 1))
    if list(seen.seqs) != expected:
        raise Unexpected(f"a follower saw {len(seen.seqs)} events, not {len(expected)} or not in their order")


def flooding(stage: Stage, scale: Scale) -> Iterator[Row]:
    """1, 10, 100 and 1,000 followers of a producer that never rests, and of one that speaks as a fast model does."""
    with stage.edge() as edge:
        for count in FOLLOWERS:
            yield _measured(stage, edge, scale, count, None)
        yield _measured(stage, edge, scale, FOLLOWERS[-1], _PACED_PER_S)


def _measured(stage: Stage, edge: Child, scale: Scale, count: int, per_s: float | None) -> Row:
    url, key = edge.hello["url"], edge.hello["key"]
    pace = "flooding" if per_s is None else f"{per_s:g} events/s"
    task = edge.ask({"open": f"task_{count}_{pace}"})
    with ExitStack() as stack:

        def side(path: str, task: str | None) -> _Side:
            follow = Follow(url=url, path=path, key=key, followers=count, task=task, watched=min(count, _WATCHED))
            return _Side(edge, task, stack.enter_context(Followers(follow, stage.environment())))

        ours, plain = side("/v1/stream", task), side("/plain", None)
        for either in (ours, plain):
            either.block(_WARM_UP_S, per_s, counted=False)
        for at in range(scale.fanout_blocks):
            for either in (ours, plain) if at % 2 else (plain, ours):
                either.block(scale.fanout_block_s, per_s)
    mine, theirs = Summary.of(ours.costs_us), Summary.of(plain.costs_us)
    held = per_s is None and count == max(FOLLOWERS)
    return Row(
        what=f"WebSocket fan-out, {count} follower{'s' if count > 1 else ''}, {pace}",
        unit="µs",
        ours=mine,
        reference_is="send_json to each",
        reference=theirs,
        ratio=mine.median / theirs.median,
        hold=f"≤ {_AT_MOST_US:g} µs" if held else "",
        holds=mine.median <= _AT_MOST_US if held else None,
        notes=[
            "CPU of the serving process for each delivery (event × follower); every follower was sent every event "
            f"once, checked by its bytes, and of {min(count, _WATCHED)} by number",
            f"{_told(ours)}; reference {_told(plain)}",
        ],
        details={"ours": ours.told, "reference": plain.told},
    )


def _told(side: _Side) -> str:
    told = side.told
    return (
        f"{told['joined']:.1f} events a pass, {told['events_per_s']:.0f} events/s, "
        f"{told['deliveries_per_s']:.0f} deliveries/s at {told['cpu_share']:.0%} of a core"
    )
