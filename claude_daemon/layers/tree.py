"""One layer is a tree of :class:`Table` and :class:`Leaf`; each part knows its origin, merged or not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from claude_daemon.layers.fault import Fault

KeyPath = tuple[str, ...]


class Layer(StrEnum):
    DEFAULT = "default"
    PROFILE = "profile"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which layer a value came from, and where in it: a path, a variable, a flag, the profile's name."""

    layer: Layer
    where: str = ""

    def __str__(self) -> str:
        return f"{self.layer} {self.where}".rstrip()


DEFAULT = Origin(layer=Layer.DEFAULT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    value: Any
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    entries: Mapping[str, Node]
    origin: Origin


Node = Leaf | Table


def table(values: BaseModel | Mapping[str, Any], origin: Origin) -> Table:
    """Mappings become tables, models too; everything else, lists included, is one leaf."""
    entries = {str(name): _node(value, origin) for name, value in dict(values).items()}
    return Table(entries=entries, origin=origin)


def _node(value: object, origin: Origin) -> Node:
    if isinstance(value, BaseModel | Mapping):
        return table(value, origin)
    return Leaf(value=value, origin=origin)


def at(path: KeyPath, value: object, origin: Origin) -> Table:
    """A tree that holds one value."""
    for name in reversed(path[1:]):
        value = {name: value}
    return table({path[0]: value}, origin)


def merge(below: Table, above: Table, faults: list[Fault], path: KeyPath = ()) -> Table:
    """``above`` laid over ``below``. A plain value where ``below`` has a table is a fault, and left out."""
    entries = dict(below.entries)
    for name, node in above.entries.items():
        known = entries.get(name)
        if isinstance(known, Table) and isinstance(node, Table):
            entries[name] = merge(known, node, faults, (*path, name))
        elif isinstance(known, Table):
            key = dotted((*path, name))
            faults.append(Fault(where=node.origin.where, key=key, message="must be a table"))
        else:
            entries[name] = node
    return Table(entries=entries, origin=above.origin)


def plain(node: Node) -> Any:
    """The bare values of a tree."""
    return {k: plain(v) for k, v in node.entries.items()} if isinstance(node, Table) else node.value


def leaves(value: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value below a model or mapping with its path; an empty table counts as a value."""
    entries = dict(value) if isinstance(value, BaseModel | Mapping) else None
    if not entries:
        yield path, {} if entries == {} else value
        return
    for name, entry in entries.items():
        yield from leaves(entry, (*path, str(name)))


def origin_at(node: Node, path: KeyPath) -> Origin:
    """The origin of the value at ``path``, or of the nearest table above it."""
    for name in path:
        child = node.entries.get(name) if isinstance(node, Table) else None
        if child is None:
            break
        node = child
    return node.origin


def without(node: Table, path: KeyPath) -> Table:
    """The tree without what stands at ``path``."""
    name, *rest = path
    entries = dict(node.entries)
    child = entries.pop(name, None)
    if rest and isinstance(child, Table):
        entries[name] = without(child, tuple(rest))
    return Table(entries=entries, origin=node.origin)


def dotted(path: Sequence[str | int]) -> str:
    """``http.port``, ``roots[0].path``, ``prices."claude-3.5".input``: as TOML writes it."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." * bool(text) + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part))
    return text


def origins(settings: BaseModel, root: Table) -> dict[str, Origin]:
    """The origin of every effective value, by dotted key."""
    return {dotted(path): origin_at(root, path) for path, _ in leaves(settings)}
