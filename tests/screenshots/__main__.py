"""``make screenshots``: draws the pictures of ``docs/images`` anew, each of a real daemon with some load.

``python -m tests.screenshots [NAME...]`` draws those alone. What is this machine's (paths, ports) is told as an
ordinary installation has it; all else is as it was.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from tests.screenshots import page, terminal
from tests.screenshots.stage import IMAGES, Stage

PICTURES: Final[Mapping[str, Callable[[Stage], Awaitable[None]]]] = {
    "status": terminal.status,
    "top": terminal.top,
}
APART: Final[Mapping[str, Callable[[], Awaitable[None]]]] = {"ui": page.ui}
"""Those of a daemon of their own."""


async def main(names: list[str]) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    wanted = names or [*PICTURES, *APART]
    if staged := [name for name in wanted if name in PICTURES]:
        async with Stage() as stage:
            for name in staged:
                await PICTURES[name](stage)
                sys.stdout.write(f"drawn: {name}\n")
    for name in wanted:
        if name in APART:
            await APART[name]()
            sys.stdout.write(f"drawn: {name}\n")


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - {*PICTURES, *APART}:
        sys.exit(f"there is no picture {', '.join(sorted(unknown))}; there are {', '.join([*PICTURES, *APART])}")
    asyncio.run(main(sys.argv[1:]))
