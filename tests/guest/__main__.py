"""``make test-guest``: the tests of an agent's limits by cgroup, in a guest whose kernel has what they need.

Where cgroup v2 has no controllers for memory and processes (because those of the old kind have them) these tests are
skipped; here they are not, and one that is skipped in the guest counts as failed.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Final

import orjson

from claude_daemon.offline import OfflineModel
from tests.guest.machine import ROOT, Job, NoGuest, accelerated, missing, run, supported
from tests.guest.packages import CannotFetch, parts
from tests.support import DaemonProcess

KEPT: Final = ROOT / ".venv" / "guest"
PROBED: Final = KEPT / "capabilities.json"
TESTS: Final = ("tests/engine/test_cgroup.py", "tests/e2e/test_agent_cgroup.py", "tests/system/test_limits.py")
# KVM → what times in tests are multiplied with: an emulated processor is some thirty times slower than its host's, and
# tests wait for more than a processor.
PATIENCE: Final = {True: 2, False: 10}
TIMEOUT_S: Final = {True: 900.0, False: 3000.0}


def main() -> int:
    arguments = _parsed()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        if not supported():
            raise NoGuest("a guest needs Linux on amd64")
        if absent := missing():
            raise NoGuest(f"not here: sudo apt-get install -y --no-install-recommends {' '.join(absent)}")
        made_of = parts(KEPT / "debian")
        kvm = accelerated() if arguments.accel is None else arguments.accel == "kvm"
        print(f"the guest is {'virtual (KVM)' if kvm else 'emulated (TCG): this takes a while'}", flush=True)
        job = asyncio.run(_job(arguments.pytest or TESTS, PATIENCE[kvm]))
        began = time.monotonic()
        status = run(made_of, job, kvm=kvm, timeout_s=arguments.timeout or TIMEOUT_S[kvm])
    except (CannotFetch, NoGuest) as error:
        print(f"make test-guest: {error}", file=sys.stderr)
        return 1
    print(f"the guest took {time.monotonic() - began:.0f} s", flush=True)
    return status


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.guest", description=__doc__)
    parser.add_argument("--accel", choices=("kvm", "tcg"), help="instead of KVM where the processor has it, else TCG")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="when a guest that has not ended is ended")
    parser.add_argument("pytest", nargs="*", help=f"what pytest is given, after --, instead of {' '.join(TESTS)}")
    return parser.parse_args()


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)  # by way of what ends the guest


async def _job(arguments: list[str] | tuple[str, ...], patience: int) -> Job:
    """The run of pytest. What the CLI can do is found out here, where it takes seconds; the guest has the same file."""
    cli = await _probe()
    python = Path(sys.executable)
    kept = " ".join((f"PATH={python.parent}:$PATH", "HOME=$HOME", "LANG=$LANG", "TMPDIR=$TMPDIR"))
    given = shlex.join((f"PATIENCE={patience}", f"PROBED={PROBED}"))
    without = ("-p", "no:cacheprovider", "-p", "no:schemathesis")  # whose imports alone would take a while
    pytest = (str(python), "-m", "pytest", "-v", "-p", "tests.guest.strict", *without, *arguments)
    return Job(command=f"env -i {kept} {given} {shlex.join(pytest)}", warm=cli)


async def _probe() -> Path:
    """Leaves the result in :data:`PROBED`; the executable."""
    PROBED.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="guest-") as home:
        async with OfflineModel() as model:
            daemon = await DaemonProcess(Path(home), model, {"engine.workers": 1, "engine.spares": 0}).start()
            status = await daemon.stop()
        found = Path(home) / ".claude-daemon" / "engine" / PROBED.name
        if status != 0 or not found.exists():
            raise NoGuest("the CLI's probe has failed on this machine: make test tells more")
        shutil.copy(found, PROBED)
    return Path(orjson.loads(PROBED.read_bytes())["cli"][0])


if __name__ == "__main__":
    sys.exit(main())
