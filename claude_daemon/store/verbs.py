"""Write verbs: functions over the writer's connection, and what is promised of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Concatenate, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Call(Generic[R_co]):
    """A verb with its arguments: ``apply`` runs within the writer's transaction.

    ``exempt``: it has happened outside already, so it is kept in its place and tried again until the store recovers.
    ``relaxed``: the next commit that is flushed to the disk may take it there; until then it survives a crash of the
    process, not one of the machine.
    """

    verb: str
    exempt: bool
    relaxed: bool
    apply: Callable[[Connection], R_co]


class Verb(Generic[P, R]):
    """One write verb. Calling it applies it at once; :meth:`bind` makes the :class:`Call` that a writer queues."""

    def __init__(self, function: Callable[Concatenate[Connection, P], R], *, exempt: bool, relaxed: bool) -> None:
        self.name = function.__name__
        self._function = function
        self._exempt = exempt
        self._relaxed = relaxed

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        def apply(db: Connection) -> R:
            return self._function(db, *args, **kwargs)

        return Call(self.name, self._exempt, self._relaxed, apply)

    def __call__(self, db: Connection, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(db, *args, **kwargs)


def verb(function: Callable[Concatenate[Connection, P], R]) -> Verb[P, R]:
    """One that fails when it cannot be made durable."""
    return Verb(function, exempt=False, relaxed=False)


def exempt(function: Callable[Concatenate[Connection, P], R]) -> Verb[P, R]:
    """One that is kept until it is durable."""
    return Verb(function, exempt=True, relaxed=False)


def write_behind(function: Callable[Concatenate[Connection, P], R]) -> Verb[P, R]:
    """One that is kept until it is durable, and is not worth a flush of its own."""
    return Verb(function, exempt=True, relaxed=True)
