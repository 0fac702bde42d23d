"""From the merged tree to the model, or to everything that is wrong, in the words of the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from claude_daemon.layers.fault import CONFLICT, Fault, nearest
from claude_daemon.layers.schema import bare, type_at, variables
from claude_daemon.layers.text import echo
from claude_daemon.layers.tree import KeyPath, Table, dotted, origin_at, plain, without

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], root: Table, faults: list[Fault], *, context: object = None) -> Model | None:
    """The model, or None with one more fault for everything that is wrong.

    Bad values are taken out and the rest is validated again, so that conflicts between good values are told
    in the same breath as bad ones.
    """
    bad: list[KeyPath] = []
    while True:
        try:
            settings = model.model_validate(plain(root), context=context)
        except ValidationError as error:
            details = error.errors(include_url=False)
        else:
            return None if bad else settings
        pruned = root
        for detail in details:
            found, path = _faults_of(detail, model, root, bad)
            faults += [fault for fault in found if fault not in faults]
            if path:
                bad.append(path)
                pruned = without(pruned, path)
        if plain(pruned) == plain(root):
            return None
        root = pruned


def _faults_of(
    detail: ErrorDetails, model: type[BaseModel], root: Table, bad: Sequence[KeyPath]
) -> tuple[list[Fault], KeyPath]:
    """What one pydantic error says, and the path whose removal cures it (empty for conflicts)."""
    loc = tuple(part for part in detail["loc"] if part != "[key]")
    named = tuple(map(str, takewhile(lambda part: isinstance(part, str), loc)))
    if detail["type"] == CONFLICT:
        return [
            Fault(
                where=origin_at(root, (*named, conflict.key)).where or "defaults",
                key=dotted((*loc, conflict.key)),
                message=conflict.message,
            )
            for conflict in detail["ctx"]["conflicts"]
            if not any(path[: len(named) + 1] == (*named, given) for given in conflict.given for path in bad)
        ], ()
    fault = Fault(where=origin_at(root, named).where, key=dotted(loc), message=_message(detail, loc, model))
    return [fault], named[:-1] if detail["type"] == "missing" and len(named) == len(loc) else named


_WORDS = {
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "mapping_type": "must be a table",
    "tuple_type": "must be a list",
    "bool_type": "must be true or false",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must be a plain name: letters, digits and a few marks, no mark in front",
    "path_type": "must be a path",
}


def _message(detail: ErrorDetails, loc: tuple[str | int, ...], model: type[BaseModel]) -> str:
    annotation = type_at(model, loc)
    if detail["type"] == "extra_forbidden":
        return _unknown(loc, model)
    if detail["type"] == "missing":
        return "is required"
    if detail["type"] == "value_error":
        text = str(detail["ctx"]["error"])
    else:
        text = _WORDS.get(detail["type"], detail["msg"].replace("Input should be", "must be"))
        text = text.replace("a valid string", "a string").replace("a valid integer", "a whole number")
    return text + echo(detail["input"], annotation)


def _unknown(loc: tuple[str | int, ...], model: type[BaseModel]) -> str:
    *parents, name = loc
    kind, _ = bare(type_at(model, parents))
    hint = nearest(str(name), list(kind.model_fields))
    if not hint:
        homes = [key for key in map(dotted, variables(model).values()) if key.endswith(f".{name}")]
        hint = f"; did you mean {homes[0]}?" if homes else ""
    return f"unknown {'key' if parents else 'section'}{hint}"
