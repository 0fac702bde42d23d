"""``make docs``: writes the pages that are made from the code."""

from __future__ import annotations

import sys

from tests.docs.pages import PAGES


def main() -> None:
    for path, make in PAGES.items():
        made = make()
        changed = not path.exists() or path.read_text() != made
        path.parent.mkdir(exist_ok=True)
        path.write_text(made)
        sys.stdout.write(f"{path.name}: {'written' if changed else 'is current'}\n")


if __name__ == "__main__":
    main()
