"""A ``claude`` that is not the one we were built with: an older one, and one that is something else altogether."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from claude_daemon.engine import lane
from tests.conftest import StartDaemon
from tests.e2e.test_engine_capabilities import keeps_a_session_or_says_why_not
from tests.e2e.test_engine_lifecycle import script, until, worker_where
from tests.e2e.test_lifecycle import Streaming
from tests.support import text_of

pytestmark = pytest.mark.engine

FLAGS = {"bare": "--bare", "restricted": "--restricted", "permission_prompts": "--permission-prompts"}
# It knows none of our flags that are newer than itself, and says so as the real one does.
OLDER = r"""
case "$1" in
  --version) echo "2.0.1 (Claude Code)"; exit 0 ;;
  --help) "$CLI" --help | grep -v -e --bare -e --restricted -e --permission-prompts; exit 0 ;;
esac
for argument; do
  case "$argument" in
    --bare|--restricted|--permission-prompts|--permission-prompts=*)
      echo "error: unknown option '$argument'" >&2; exit 1 ;;
  esac
done
exec "$CLI" "$@"
"""
NODE = (
    'echo "$1" >> "$0.starts"\n[ "$1" = --version ] && echo v18.19.0 && exit 0\necho "node: bad option: $1" >&2\nexit 9'
)


async def test_an_older_cli_without_our_flags_serves_without_them_and_health_names_them(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    cli = script(tmp_path / "cli", OLDER)
    for flag in FLAGS.values():
        refused = subprocess.run([cli, "--print", flag], capture_output=True, text=True)
        assert (refused.returncode, refused.stderr) == (1, f"error: unknown option '{flag}'\n")
    daemon = await start_daemon({"engine.cli_path": cli})

    response = await daemon.chat("Hello [[tokens=3]]")
    assert (response.status, text_of(await response.json())) == (200, "Hello from the")
    assert response.headers["Claude-Daemon-Lane"] == "text"
    as_a_cat = await daemon.chat("Who are you? [[system]]", system="You are a cat.")
    assert "You are a cat." in text_of(await as_a_cat.json())
    events = await (await Streaming.begin(daemon, "Hello [[tokens=3]]", lane="text")).rest()
    assert events[-1][0] == "message_stop"

    arguments = Path(f"/proc/{(await worker_where(daemon, state='idle'))['pid']}/cmdline").read_text().split("\0")
    assert not [argument for argument in arguments if argument.startswith(tuple(FLAGS.values()))]
    status = await daemon.control("status")
    assert (status["cli"]["version"], status["cli"]["missing"]) == ("2.0.1", list(FLAGS))
    async with daemon.http.get("/health") as answer:
        health = await answer.json(content_type=None)
    assert (answer.status, health["status"]) == (200, "warn")
    engine = health["checks"]["engine"]
    assert (engine["status"], engine["version"], engine["missing"]) == ("warn", "2.0.1", list(FLAGS))
    assert all(f"{name}: " in engine["reason"] for name in FLAGS)
    crashes = [line for line in daemon.log() if line["event"] in ("worker.crashed", "worker.start_failed")]
    assert crashes == []


NO_COPY = r"""
case "$*" in *--fork-session*)
  for given; do
    shift
    case "$given" in --fork-session|--session-id=*) ;; *) set -- "$@" "$given" ;; esac
  done
esac
"""
AS_IT_IS = 'case "$1" in --version|--help) exec "$CLI" "$@" ;; esac\n'


@pytest.mark.capabilities  # each of them is another CLI, which is probed from the start
@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        # what --help does not name is not there
        (
            '[ "$1" = --help ] && { "$CLI" --help | grep -v -e --resume; exit 0; }\n',
            ["sessions", "fork", "message_ids"],
        ),
        ('[ "$1" = --help ] && { "$CLI" --help | grep -v -e --fork-session; exit 0; }\n', ["fork"]),
        # what it names and does not do is not there either: here a fork goes on with what it was to leave as it is
        (NO_COPY, ["fork"]),
        (
            AS_IT_IS + """sed -u 's/"uuid":"[^"]*"/"other":""/' | "$CLI" "$@"; exit\n""",
            ["message_ids"],
        ),
        ("unset CLAUDE_CODE_ENABLE_TASKS\n", ["todo_list"]),
    ],
    ids=["no resume", "no fork", "a fork that is none", "no ids", "no list of what is to do"],
)
async def test_what_is_relied_on_is_probed_and_sessions_are_refused_by_name_without(
    start_daemon: StartDaemon, tmp_path: Path, changes: str, missing: list[str]
) -> None:
    cli = script(tmp_path / "cli", f'{changes}exec "$CLI" "$@"')
    daemon = await start_daemon({"engine.cli_path": cli, "engine.sandbox": "none"})  # which would hide what it starts
    assert (await daemon.control("status"))["cli"]["missing"] == missing
    engine = (await daemon.control("health"))["checks"]["engine"]
    assert (engine["status"], all(f"{name}: " in engine["reason"] for name in missing)) == ("warn", True)
    await keeps_a_session_or_says_why_not(daemon, set(missing))


async def test_an_updated_cli_is_asked_again_what_it_can(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """What was found of an executable holds for that one alone."""
    cli = script(tmp_path / "cli", OLDER)
    first = await start_daemon({"engine.cli_path": cli})
    assert (await first.control("status"))["cli"]["missing"] == list(FLAGS)
    assert await first.stop() == 0
    script(cli, 'exec "$CLI" "$@"')
    second = await start_daemon({"engine.cli_path": cli}, home=first.home)
    assert (await second.control("status"))["cli"]["missing"] == []
    assert (await second.control("health"))["checks"]["engine"]["status"] == "pass"


async def test_another_program_that_knows_version_closes_the_text_lane_alone_and_is_left_in_peace(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    cli = script(tmp_path / "cli", NODE)
    starts = tmp_path / "cli.starts"

    def tries() -> int:
        return starts.read_text().split().count("--version")

    began = time.monotonic()
    daemon = await start_daemon({"engine.cli_path": cli})
    for _ in range(20):  # none of these starts anything
        response = await daemon.chat("Hello")
        assert response.status == 503
        message = (await response.json())["error"]["message"]
        assert message.startswith("Claude Code cannot be started: ")
        assert "ended with status 9" in message
        assert "bad option" not in message  # nobody knows what a program writes to stderr
        assert (await daemon.chat("Hello [[tokens=3]]", lane="direct")).status == 200
    async with daemon.http.get("/health") as answer:
        health = await answer.json(content_type=None)
    assert (answer.status, health["status"], health["checks"]["engine"]["status"]) == (200, "warn", "warn")
    assert "ended with status 9; the direct lane works" in health["checks"]["engine"]["reason"]
    async with daemon.http.get("/ready") as ready:
        assert ready.status == 200

    await until(lambda: tries() >= 3)
    pauses = sum(lane._BACKOFF.delay(failures, 0.0) for failures in (1, 2))
    assert time.monotonic() - began >= pauses
    assert len(starts.read_text().split()) <= 3 * tries()  # version, help and one worker
