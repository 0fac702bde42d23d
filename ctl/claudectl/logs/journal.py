"""The journal of systemd, where the daemon writes to it alone."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence

from claudectl.clean import clean_line
from claudectl.errors import ControlError


def command(shown: Sequence[str], *, since: float | None) -> list[str]:
    """``shown`` is the supervisor's own command (``journalctl --unit=… --lines=N``), here for its messages alone."""
    told = [*shown, "--output=cat", "--no-pager", "--quiet"]
    return [*told, f"--since=@{since:.0f}"] if since is not None else told


def lines(argv: Sequence[str]) -> Iterator[bytes]:
    """What the command prints, as it comes; leaving ends it. Raises ControlError."""
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise ControlError(f"{argv[0]}: {error.strerror}") from error
    with process:
        assert process.stdout is not None and process.stderr is not None
        try:
            for line in process.stdout:
                if stripped := line.rstrip(b"\r\n"):
                    yield stripped
        finally:
            process.kill()
        said = clean_line(process.stderr.read().decode(errors="replace"))
    if process.returncode > 0:
        raise ControlError(f"{argv[0]} failed: {said or process.returncode}")
