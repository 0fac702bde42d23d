"""The pages that are made from the code, and what makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.docs import claudectl_page, configuration_page

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
PAGES: Final[Mapping[Path, Callable[[], str]]] = {
    DOCS / "claudectl.md": claudectl_page.page,
    DOCS / "configuration.md": configuration_page.page,
}
