"""The limit of descriptors, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRY = """
import resource, sys
from claude_daemon.supervise.descriptors import allow
soft, hard, connections = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(allow(connections), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "allowed"),
    [
        (64, 4096, 1000, 1512),  # as many as are needed
        (64, 256, 1000, 256),  # as many as there can be
        (2000, 4096, 1000, 2000),  # never fewer than before
    ],
)
def test_the_soft_limit_is_raised_to_what_is_needed(soft: int, hard: int, connections: int, allowed: int) -> None:
    argv = [sys.executable, "-c", TRY, str(soft), str(hard), str(connections)]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert told.split() == [str(allowed), str(allowed), str(hard)]
