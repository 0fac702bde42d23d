"""How soon an event is with its followers: from the CLI's line to the socket."""

from __future__ import annotations

from collections.abc import Iterator

from claude_daemon.engine.lane import bundled_cli
from tests.bench.client import Unexpected
from tests.bench.followers import Expect, Follow, Followers, Seen
from tests.bench.measure import Row, Scale, Summary
from tests.bench.stage import Daemon, Stage
from tests.bench.stamped import StampedCli

FOLLOWERS = 100
_P99_MS = 5.0
_PACE_MS = 16


class _Latencies:
    """Of one number of followers; rounds add up."""

    def __init__(self, stage: Stage, daemon: Daemon, cli: StampedCli, followers: int) -> None:
        self._stage = stage
        self._daemon = daemon
        self._cli = cli
        self._followers = followers
        self.seconds: list[float] = []

    def round(self, events: int) -> None:
        """One task. It is queued until everybody follows it, and written by one process."""
        daemon = self._daemon
        daemon.act("queue/pause")
        daemon.calm()
        before = len(self._cli.taken())
        task = daemon.submit(f"Speak slowly. [[tokens={events}]] [[pace={_PACE_MS}ms]]")
        follow = Follow(
            url=daemon.url,
            path="/v1/stream",
            key=daemon.key,
            followers=self._followers,
            task=task,
            watched=self._followers,
        )
        with Followers(follow, self._stage.environment()) as followers:
            followers.begin()
            daemon.act("queue/resume")
            seen = followers.seen(Expect())
        said = self._cli.taken()[before:]
        for one in seen:
            self._add(one, said)

    def _add(self, seen: Seen, said: list[float]) -> None:
        """The n-th delta of the CLI is the n-th of each follower."""
        if not said or len(seen.seqs) != len(said) or sorted(set(seen.seqs)) != seen.seqs:
            raise Unexpected(f"the CLI said {len(said)} deltas, a follower saw {len(seen.seqs)}")
        self.seconds += [came - was_said for came, was_said in zip(seen.at_s, said, strict=True)]


def latency(stage: Stage, scale: Scale) -> Iterator[Row]:
    """A task at the pace of a fast model, with a hundred followers and with one."""
    real = bundled_cli()
    assert real is not None
    cli = StampedCli.write(real, stage.scratch("s"))
    with stage.fresh_daemon({"ENGINE__CLI_PATH": cli.path}) as daemon:
        many, one = (_Latencies(stage, daemon, cli, followers) for followers in (FOLLOWERS, 1))
        one.round(scale.latency_events // 4)  # warms up
        one.seconds.clear()
        for at in range(scale.latency_rounds):
            for either in (many, one) if at % 2 else (one, many):
                either.round(scale.latency_events)
    mine, theirs = Summary.ms(many.seconds), Summary.ms(one.seconds)
    yield Row(
        what=f"from the CLI's line to {FOLLOWERS} followers' sockets",
        unit="ms",
        ours=mine,
        reference_is="to one follower's",
        reference=theirs,
        ratio=mine.median / theirs.median,
        hold=f"p99 ≤ {_P99_MS:g} ms",
        holds=mine.p99 <= _P99_MS,
        notes=[
            f"p99 {mine.p99:.2f} ms, with one follower {theirs.p99:.2f}; an event every {_PACE_MS} ms",
            "from right before the real CLI's line is written into the daemon's pipe until the kernel has the event in "
            "a follower's socket",
        ],
    )
