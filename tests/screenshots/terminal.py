"""``claudectl status`` and ``claudectl top`` as pictures."""

from __future__ import annotations

import io
from typing import Any, Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, RenderableType
from rich.terminal_theme import TerminalTheme

from claudectl.board import Board
from claudectl.screen import Status
from tests.screenshots.stage import IMAGES, SETTLED_PICTURES, Stage

COLUMNS: Final = 130
ROWS: Final = 34
KEPT: Final = 50

# Fonts of the reader's machine: a picture in a README may fetch none.
FONT: Final = "ui-monospace, 'DejaVu Sans Mono', 'SFMono-Regular', Menlo, Consolas, monospace"
FORMAT: Final = (
    CONSOLE_SVG_FORMAT[: CONSOLE_SVG_FORMAT.index("@font-face")]
    + CONSOLE_SVG_FORMAT[CONSOLE_SVG_FORMAT.index(".{unique_id}-matrix") :]
).replace("font-family: Fira Code, monospace", f"font-family: {FONT}")
THEME: Final = TerminalTheme(
    (24, 26, 31),
    (214, 219, 226),
    [
        (24, 26, 31),
        (224, 108, 117),
        (126, 198, 153),
        (229, 192, 123),
        (97, 175, 239),
        (198, 120, 221),
        (86, 182, 194),
        (214, 219, 226),
    ],
)


async def status(stage: Stage) -> None:
    line = await _snapshot(stage, [])
    _draw("status", "claudectl status", Status(line["data"]["status"]), rows=30)


async def top(stage: Stage) -> None:
    happenings: list[dict[str, Any]] = []
    line = await _snapshot(stage, happenings)
    _draw("top", "claudectl top", Board(line, happenings[-KEPT:], live=True), rows=ROWS)


async def _snapshot(stage: Stage, happenings: list[dict[str, Any]]) -> dict[str, Any]:
    """One that comes when what runs has some age."""
    seen = 0
    async with stage.lines() as lines:
        async for line in lines:
            if line["type"] != "snapshot":
                happenings.append(line)
                continue
            seen += 1
            if seen > SETTLED_PICTURES:
                return line
    raise RuntimeError("the daemon stopped")


def _draw(name: str, title: str, picture: RenderableType, *, rows: int) -> None:
    console = Console(
        record=True,
        width=COLUMNS,
        height=rows,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(picture)
    made = console.export_svg(title=title, theme=THEME, code_format=FORMAT, unique_id=name)
    # some renderers collapse even spaces that do not break
    made = made.replace("<svg ", '<svg xml:space="preserve" ', 1).replace("\n</text>", "</text>")
    (IMAGES / f"{name}.svg").write_text("\n".join(line.rstrip() for line in made.split("\n")) + "\n")
