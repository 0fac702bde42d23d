"""`python -m claude_daemon.offline`: serve until SIGTERM or SIGINT.

Prints one JSON line, `{"base_url":…,"api_key":…}`, once it listens.
"""

import argparse
import asyncio
import importlib.util
import signal
import sys
from collections.abc import Callable, Sequence

import orjson

from claude_daemon.offline.server import OfflineModel
from claude_daemon.offline.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and serve. Returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        settings = Settings(tokens=options.tokens, pace_s=options.pace / 1000)
    except ValueError as error:
        parser.error(str(error))
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(options, settings))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m claude_daemon.offline", description="The offline model.")
    parser.add_argument("--port", type=int, default=0, help="port on loopback (default: a free one)")
    parser.add_argument("--api-key", help="the key to accept (default: a random one)")
    parser.add_argument("--record", action="store_true", help="keep requests for GET /offline/requests")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens of every default reply")
    parser.add_argument("--pace", type=float, default=0.0, metavar="MS", help="milliseconds between deltas")
    return parser


async def _serve(options: argparse.Namespace, settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    model = OfflineModel(port=options.port, api_key=options.api_key, settings=settings, record=options.record)
    async with model:
        sys.stdout.write(orjson.dumps({"base_url": model.base_url, "api_key": model.api_key}).decode() + "\n")
        sys.stdout.flush()
        await stop.wait()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed, else asyncio's own."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main())
