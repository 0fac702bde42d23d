"""A process of its own that checks JSON texts against JSON schemas; its parent kills it when one takes long.

Run as a file with ``python -I schema_child.py PATH…``: the paths are where the parent finds its libraries, so
that it works from any installation with an empty environment. It imports nothing of ours, and may see no
network. One JSON line in, one out:

- ``{"schema": "<JSON>"}``                   → ``{"ok": true}`` where the schema is one
- ``{"schema": "<JSON>", "text": "<JSON>"}`` → ``{"ok": true}`` where the text satisfies the schema
- else ``{"ok": false, "path", "reason"}``
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

MAX_ADDRESS_SPACE_BYTES: Final = 1024**3
"""Python with jsonschema maps 100 MiB; the rest is for a text of 8 MiB once it is objects."""
CPU_SECONDS_PER_CHECK: Final = 5
"""Beyond the parent's deadline: ends a check that the parent did not live to kill."""
MAX_ERRORS: Final = 100
"""Errors looked at to find the one that tells most."""
MAX_REASON: Final = 300
MAX_PATH: Final = 200
CACHED_SCHEMAS: Final = 32

Answer = dict[str, Any]


def main() -> None:
    sys.path += [path for path in sys.argv[1:] if path not in sys.path]
    check('{"type": "string"}', '""')  # loads all that is loaded late, before files are out of reach
    _limit()
    _write({"ok": True})
    for line in sys.stdin.buffer:
        _allow_cpu()
        given = json.loads(line)
        _write(check(given["schema"], given.get("text")))


def check(schema: str, text: str | None) -> Answer:
    """Whether `text` satisfies `schema`; without a text, whether the schema is one."""
    try:
        validator = _validator(schema)
        return {"ok": True} if text is None else _judge(validator, text)
    except RecursionError:
        return _no("", "The check ended because the schema or the text is nested too deeply.")
    except MemoryError:
        return _no("", "The check ended because it needed too much memory.")
    except Exception as error:  # whatever a client's schema makes the library do is this schema's answer
        return _no("", _library_error(error))


def _judge(validator: Validator, text: str) -> Answer:
    from jsonschema.exceptions import best_match

    try:
        instance = json.loads(text, parse_constant=_not_json)
    except ValueError as error:
        return _no("", f"The text is not JSON: {error}.")
    found = best_match(islice(validator.iter_errors(instance), MAX_ERRORS))
    return {"ok": True} if found is None else _no(_dotted(found.absolute_path), f"{found.message}.")


@lru_cache(CACHED_SCHEMAS)
def _validator(schema: str) -> Validator:
    """Raises for what is no schema."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from referencing import Registry

    document = json.loads(schema)
    cls = validator_for(document, default=Draft202012Validator)
    cls.check_schema(document)
    return cls(document, registry=Registry())  # a registry of its own retrieves nothing; the library's own would


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _library_error(error: Exception) -> str:
    from jsonschema.exceptions import SchemaError
    from referencing.exceptions import Unresolvable

    if isinstance(error, SchemaError):
        return f"The schema is not valid at `{_dotted(error.absolute_path)}`: {error.message}."
    if isinstance(error, Unresolvable):
        return f"The schema refers to what it does not contain: {error.ref}."
    return f"The schema cannot be checked ({type(error).__name__})."


def _dotted(path: Any) -> str:
    return ".".join(str(part) for part in path)


def _no(path: str, reason: str) -> Answer:
    return {"ok": False, "path": _cut(path, MAX_PATH), "reason": _cut(reason, MAX_REASON)}


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _write(answer: Answer) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


def _limit() -> None:
    """No new descriptor (so no socket and no file), no core, bounded memory; as far as the system has it."""
    limits = (
        (resource.RLIMIT_AS, MAX_ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_CORE, 0),
    )
    for limit, value in limits:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))


def _allow_cpu() -> None:
    """The soft limit counts from the process's start, so it moves on with each check."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS_PER_CHECK
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    main()
