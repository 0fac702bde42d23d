"""What a pydantic model says about its keys: their types, and the variables that set them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from claude_daemon.layers.tree import KeyPath
from claude_daemon.secret import Secret

PREFIX = "CLAUDE_DAEMON_"

NONE = "none"
"""How a file, a variable or a flag says that an optional value is not set; TOML has no null."""


class Octal:
    """Marks an ``Annotated[int, …]`` that people write and read in octal."""


def bare(annotation: Any) -> tuple[Any, tuple[object, ...]]:
    """The type inside ``Annotated[…]`` and ``… | None``, and the notes met on the way (NoneType is one)."""
    notes: tuple[object, ...] = ()
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            notes += tuple(more)
        elif get_origin(annotation) in (Union, UnionType):
            annotation = next(arm for arm in get_args(annotation) if arm is not NoneType)
            notes += (NoneType,)
        else:
            return annotation, notes


def type_at(annotation: Any, path: Sequence[str | int]) -> Any:
    """The annotation at a path below a model, None where the model has no such key."""
    for part in path:
        kind, _ = bare(annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(part))
            annotation = None if field is None else field.rebuild_annotation()
        elif get_origin(kind) is not None and len(get_args(kind)) > 1:
            annotation = get_args(kind)[0 if isinstance(part, int) else 1]
        else:
            return None
    return annotation


def is_secret(annotation: Any) -> bool:
    return bare(annotation)[0] is Secret


@cache
def variables(model: type[BaseModel]) -> Mapping[str, KeyPath]:
    """Every variable that sets something: ``CLAUDE_DAEMON_HTTP__PORT`` → ``("http", "port")``.

    A section that is itself a table of names or a list (``mcp``, ``roots``) has one variable for all of it.
    """
    found: dict[str, KeyPath] = {}
    for section, field in model.model_fields.items():
        kind, _ = bare(field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= {f"{PREFIX}{section}__{key}".upper(): (section, key) for key in kind.model_fields}
        else:
            found[f"{PREFIX}{section}".upper()] = (section,)
    return found
