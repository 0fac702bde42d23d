"""``make screenshots``: draws the pictures of ``docs/images`` anew, each of a real daemon with some load.

``python -m tests.screenshots [NAME...]`` draws those alone. What is this machine's (paths, ports) is told as an
ordinary installation has it; all else is as it was.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tests.screenshots import terminal
from tests.screenshots.stage import IMAGES, Stage

PICTURES: Final[Mapping[str, Callable[[Stage], Awaitable[None]]]] = {
    "status": terminal.status,
    "top": terminal.top,
}


async def main(names: list[str]) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    async with Stage() as stage:
        for name in names or PICTURES:
            await PICTURES[name](stage)
            sys.stdout.write(f"drawn: {name}\n")


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - set(PICTURES):
        sys.exit(f"there is no picture {', '.join(sorted(unknown))}; there are {', '.join(PICTURES)}")
    asyncio.run(main(sys.argv[1:]))
