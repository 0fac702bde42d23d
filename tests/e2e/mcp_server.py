"""A small MCP server on its standard streams, for the tests: it tells what it is, and misbehaves on demand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

TOOLS = ("echo", "environment", "stray", "die", "ask.back", "hang")


def tool(name: str) -> dict[str, Any]:
    return {"name": name, "description": name, "inputSchema": {"type": "object", "properties": {}}}


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def stray() -> int:
    """Leaves a process behind: of a session and an environment of its own, its parent gone."""
    script = "import subprocess; print(subprocess.Popen(['sleep', '600'], env={}, start_new_session=True).pid)"
    said = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, env={}, check=True).stdout
    return int(said)


def called(name: str, given: dict[str, Any]) -> str:
    if name == "echo":
        return str(given.get("text"))
    if name == "environment":
        return json.dumps(dict(os.environ))
    if name == "stray":
        return json.dumps([os.getpid(), stray()])
    if name == "ask.back":
        send({"id": "back", "method": "sampling/createMessage", "params": {}})
        return sys.stdin.readline()
    if name == "hang":
        Path(given["path"]).write_text(str(os.getpid()))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            signal.pause()
    sys.stderr.write("the end is near\n")
    sys.exit(3)


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "initialize":
        about = {"name": "small", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "tools/list":
        if "cursor" not in params:  # in two pages, and one that is no tool
            return {"tools": [{"name": "odd"}, *map(tool, TOOLS[:2])], "nextCursor": "2"}
        return {"tools": [tool(name) for name in TOOLS[2:]]}
    return {"content": [{"type": "text", "text": called(params["name"], params["arguments"])}]}


def main() -> None:
    if "--refuse" in sys.argv:
        sys.exit("nobody is served here")
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message and "method" in message:
            send({"id": message["id"], "result": answer(message["method"], message.get("params") or {})})


if __name__ == "__main__":
    main()
