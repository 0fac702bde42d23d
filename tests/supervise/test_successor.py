"""What a successor begins with, where descriptors stand in each other's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PATIENCE_S = 30.0

PREDECESSOR = """
import json, os, resource, socket, sys
from claude_daemon.supervise.successor import spawn

os.closerange(3, 256)  # what the test was started with
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
hear, tell = os.pipe()
assert [sock.fileno() for sock in listeners] == [3, 4, 5]
child = '''
import json, os, socket
open_now = [fd for fd in range(256) if os.path.exists(f"/dev/fd/{fd}")]
count = int(os.environ["LISTEN_FDS"])
ports = [socket.socket(fileno=fd).getsockname()[1] for fd in range(3, 2 + count)]
seen = {
    "ports": ports,
    "names": os.environ["LISTEN_FDNAMES"],
    "pid": os.environ.get("LISTEN_PID"),
    "open": open_now,
}
print("to stdout", flush=True)
os.write(2 + count, json.dumps(seen).encode())
'''
backwards = [(f"n{place}", sock) for place, sock in enumerate(reversed(listeners))]
pid = spawn([sys.executable, "-c", child], {}, backwards, tell)
os.close(tell)
seen = json.loads(os.read(hear, 4096))
assert os.waitpid(pid, 0) == (pid, 0)
print(json.dumps([seen, [sock.getsockname()[1] for sock in reversed(listeners)]]))
"""


@pytest.mark.parametrize("limit", [256, 4096])
def test_descriptors_in_each_others_places_arrive_in_order_and_nothing_else(limit: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", PREDECESSOR, str(limit)],
        env={"PATH": os.defpath, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.stderr == ""
    said, told = done.stdout.splitlines()
    seen, ports = json.loads(told)
    assert said == "to stdout"  # it has our stdout
    assert seen == {"ports": ports, "names": "n0:n1:n2:handover", "pid": None, "open": [0, 1, 2, 3, 4, 5, 6]}
