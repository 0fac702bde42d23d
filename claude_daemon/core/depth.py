"""How deep a JSON value is nested: parsers and writers have bounds, and what passes one must pass them all."""

from __future__ import annotations

from collections.abc import Iterable


def deeper_than(document: object, limit: int) -> bool:
    """Whether arrays and objects are nested more than ``limit`` levels deep; a scalar has none.

    >>> deeper_than([[1]], 1), deeper_than([[1]], 2)
    (True, False)
    """
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(limit):
        level = [child for node in level for child in _children(node) if isinstance(child, dict | list)]
        if not level:
            return False
    return bool(level)


def _children(node: object) -> Iterable[object]:
    return node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
