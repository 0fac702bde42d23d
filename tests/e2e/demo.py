"""``make demo``: the whole product in half a minute, offline, in a home of its own that is gone afterwards.

Exit status 0 only when every step did what it says.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import Request, urlopen

_BIN = Path(sys.executable).parent
_START_TIMEOUT_S = 60.0  # a cold disk and the first probe of the CLI
_STOP_TIMEOUT_S = 30.0


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="claude-daemon-demo-") as home:
        env = {
            "PATH": f"{_BIN}:/usr/local/bin:/usr/bin:/bin",
            "HOME": home,
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
        }
        log = Path(home) / "demo.log"
        with log.open("wb") as stderr:
            daemon = subprocess.Popen(
                [_BIN / "claude-daemon", "run", "--offline", "--port", "0"],
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
            try:
                return _tour(env, Path(home) / ".claude-daemon", daemon)
            except subprocess.CalledProcessError as error:
                print(f"\ndemo: {error}\n{log.read_text()[-4000:]}", file=sys.stderr)
                return 1
            finally:
                if daemon.poll() is None:
                    daemon.terminate()
                    daemon.wait(_STOP_TIMEOUT_S)


def _tour(env: dict[str, str], home: Path, daemon: subprocess.Popen[bytes]) -> int:
    _say("claude-daemon run --offline   (starts Claude Code's own CLI on the offline model)")
    started = time.monotonic()
    _claudectl(env, "ready", "--wait", str(_START_TIMEOUT_S))
    print(f"ready after {time.monotonic() - started:.1f} s")

    _say("claudectl run   (a warm Claude Code process answers; the task and its answer are kept)")
    _claudectl(env, "run", "Say hello to whoever is trying the demo. [[tokens=20]]")
    _say("claudectl tasks list")
    _claudectl(env, "tasks", "list")

    url = _url(env)
    for lane in ("direct", "text"):
        _say(f"curl, OpenAI dialect, {lane} lane")
        _curl(env, url, home / "local.key", lane)

    _say("claudectl health")
    _claudectl(env, "health")
    _say("claudectl status")
    _claudectl(env, "status")
    _say("claudectl drain --stop")
    _claudectl(env, "drain", "--stop")
    status = daemon.wait(_STOP_TIMEOUT_S)
    print(f"\nthe daemon ended with status {status}")
    return status


def _claudectl(env: dict[str, str], *args: str) -> None:
    subprocess.run([_BIN / "claudectl", *args], env=env, check=True)


def _url(env: dict[str, str]) -> str:
    told = subprocess.run(
        [_BIN / "claudectl", "status", "--json"], env=env, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return str(json.loads(told)["url"])


def _curl(env: dict[str, str], url: str, key_file: Path, lane: str) -> None:
    """curl where there is one, else the same request by Python: the demo needs nothing installed."""
    body = '{"model": "sonnet", "stream": true, "messages": [{"role": "user", "content": "Count. [[tokens=5]]"}]}'
    headers = {
        "Authorization": f"Bearer {key_file.read_text().strip()}",
        "Content-Type": "application/json",
        "Claude-Daemon-Lane": lane,
    }
    curl = shutil.which("curl", path=env["PATH"])
    if curl is not None:
        args = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
        command = [curl, "-sS", "-N", "--fail-with-body", f"{url}/v1/chat/completions", *args, "-d", body]
        answer = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    else:
        with urlopen(Request(f"{url}/v1/chat/completions", body.encode(), headers)) as response:
            answer = response.read().decode()
    print(answer.strip())
    if "data: [DONE]" not in answer:
        raise subprocess.CalledProcessError(1, "curl")


def _say(what: str) -> None:
    print(f"\n▸ {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
