"""A daemon as it is meant to run: as a user that is not root, also where the tests run as root.

Then it gets a mount namespace of its own, in which that user can reach the interpreter, the checkout and its home: what
is on the way there and closed to others is covered, but for these.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support import BIN

NOBODY = 65534
_CHECKOUT = Path(__file__).parents[1]


def ordinary(home: Path, *reachable: Path) -> dict[str, Any]:
    """Fields for a :class:`~tests.support.DaemonProcess` at ``home``; ``reachable`` is given to that user too."""
    if os.geteuid() != 0:
        return {}
    if (why := _namespaces()) is not None:
        pytest.skip(f"needs a mount namespace of its own: {why}")
    given = [home, *reachable]
    script = home.parent / f"{home.name}-ordinary"
    script.write_text(_script([Path(sys.base_prefix), _CHECKOUT, *given], given))
    return {"program": ("unshare", "--mount", "sh", str(script))}


def give(*paths: Path) -> None:
    """Files that the tests have made become the daemon's user's own."""
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", *paths], check=True)


@cache
def _namespaces() -> str | None:
    if not (shutil.which("unshare") and shutil.which("setpriv")):
        return "util-linux is not here"
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else tried.stderr.strip()


def _script(reachable: Iterable[Path], given: Iterable[Path]) -> str:
    lines = ["set -e", "mount --make-rprivate /", "mount -t tmpfs -o mode=755 tmpfs /mnt"]
    covered: dict[Path, None] = {}
    back: list[str] = []
    for number, path in enumerate(dict.fromkeys(path.resolve() for path in reachable)):
        closed = next((parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001), None)
        if closed is None:
            continue
        covered[closed] = None
        lines += [f"mkdir /mnt/{number}", f"mount --bind {_quoted(path)} /mnt/{number}"]
        back += [f"mkdir -p {_quoted(path)}", f"mount --bind /mnt/{number} {_quoted(path)}"]
    lines += [f"mount -t tmpfs -o mode=755 tmpfs {_quoted(path)}" for path in covered]
    lines += back
    lines += [f"chown -R {NOBODY}:{NOBODY} {_quoted(path)}" for path in given]
    identity = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=-all"
    return "\n".join([*lines, f'exec {identity} {_quoted(BIN / "claude-daemon")} "$@"', ""])


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
