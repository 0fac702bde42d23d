"""``claudectl config``."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

import click

from claudectl.errors import NotFound
from claudectl.options import Command, Options
from claudectl.render import Document, Paint, documents, known, plain, table


@click.command(cls=Command, name="config")
@click.argument("key", required=False)
@click.option("--changed", is_flag=True, help="Only what is otherwise than it would be by default.")
@click.pass_obj
def command(options: Options, key: str | None, changed: bool) -> None:
    """Show the configuration of the running daemon: every value, and where it comes from. Secrets are masked.

    KEY is one setting, like http.port, of which the value alone is printed; or a section, like http. What waits for a
    restart is told with what is in force until then. Of a daemon that does not run: claude-daemon check-config.

    \b
    Examples:
      claudectl config --changed
      claudectl config engine
      claudectl config http.port
      claudectl config --json | jq -r '.values[] | select(.layer == "environment") | .key'
    """
    _, document = options.client().get("config")
    rows = documents(document.get("values"))
    exact = [row for row in rows if row.get("key") == key]
    if key is not None and exact and not changed:
        options.show(exact[0], lambda row, paint: plain(row.get("text")))
        return
    chosen = _within(rows, key) if key is not None else rows
    if changed:
        chosen = [row for row in chosen if row.get("changed")]
    options.show({**document, "values": chosen}, _listed)


def _within(rows: Iterable[Document], key: str) -> list[Document]:
    """One setting, or all of a section. Raises NotFound, with the nearest that there is."""
    keys = [(str(row.get("key")), row) for row in rows]
    found = [row for name, row in keys if name == key or name.startswith((f"{key}.", f"{key}["))]
    if found:
        return found
    names = {part for name, _ in keys for part in (name, name.partition(".")[0])}
    near = get_close_matches(key, names, n=1)
    raise NotFound(f"there is no setting {plain(key)}" + (f"; did you mean {plain(near[0])}?" if near else ""))


def _listed(document: Document, paint: Paint) -> str:
    rows = [_row(row) for row in documents(document.get("values"))]
    file = document.get("file")
    head = f"profile {plain(document.get('profile'))} · {plain(file) if file else 'no file'}"
    return f"{head}\n{table(_HEADER, rows, paint, right=frozenset())}" if rows else f"{head}\nnothing differs"


_HEADER = ("KEY", "VALUE", "ORIGIN", "")


def _row(row: Document) -> list[str]:
    waits = known(row.get("in_force"))
    later = f"after a restart; until then {waits}" if waits else ""
    return [plain(row.get("key")), plain(row.get("text")), plain(row.get("origin")), later]
