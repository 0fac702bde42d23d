"""``python -m tests.load --url … --key-file …``: loads a daemon until stdin closes, and tells what became of it.

One JSON document on stdout. The exit status is 0 when nothing failed and no task was lost, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import orjson

from tests.load.client import Amount, Load, Target
from tests.load.verify import verify


def main(argv: Sequence[str] | None = None) -> int:
    return asyncio.run(_main(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description="A constant load of chats and tasks.")
    parser.add_argument("--url", required=True, help="http://host:port")
    parser.add_argument("--key-file", required=True, type=Path, help="a file that holds the key alone")
    parser.add_argument("--seconds", type=float, help="how long (until stdin closes)")
    parser.add_argument("--loops", type=int, default=Amount().loops, help="of each mode (%(default)s)")
    parser.add_argument("--rest-ms", type=float, default=Amount().rest_s * 1000, help="after each answer (%(default)g)")
    parser.add_argument("--no-verify", action="store_true", help="do not look for the tasks afterwards")
    return parser


async def _main(options: argparse.Namespace) -> int:
    target = Target(url=options.url, key=options.key_file.read_text().strip())
    load = Load(target, Amount(loops=options.loops, rest_s=options.rest_ms / 1000))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, load.stop)
    if options.seconds is not None:
        loop.call_later(options.seconds, load.stop)
    else:
        _when_stdin_closes(load.stop)
    report = await load.run()
    document = asdict(report)
    good = not report.failed
    if not options.no_verify:
        verdict = await verify(target, report)
        document["verdict"] = asdict(verdict)
        good = good and verdict.good
    print(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())
    return 0 if good else 1


def _when_stdin_closes(call: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def read() -> None:
        sys.stdin.buffer.read()
        with contextlib.suppress(RuntimeError):  # a signal was sooner, and the loop is closed
            loop.call_soon_threadsafe(call)

    threading.Thread(target=read, daemon=True).start()  # none that the end of this process waits for


if __name__ == "__main__":
    sys.exit(main())
