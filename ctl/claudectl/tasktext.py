"""Tasks as text for people. Pure, but for the time zone; absent keys are skipped, unknown ones ignored."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from claudectl import moment
from claudectl.clean import clean
from claudectl.render import Document, Paint, duration, joined, known, mapping, plain, screen, table

# What of an error fits beside the other columns; `tasks show` tells the rest.
MAX_ERROR_CHARACTERS = 60
MAX_FILES = 20
"""Named of those that a task has changed."""

_HEADER = ("ID", "STATE", "MODEL", "AGE", "ATTEMPT", "ERROR")
_TOKENS = {
    "input_tokens": "in",
    "output_tokens": "out",
    "cache_creation_input_tokens": "to cache",
    "cache_read_input_tokens": "from cache",
}


def row(task: Document, now: float) -> list[str]:
    """A task's line in :func:`tasks`."""
    created = task.get("created_at")
    age = now - created if isinstance(created, int | float) else None
    error = plain(_error(task.get("error")))
    return [
        *(plain(task.get(key)) for key in ("id", "state", "model")),
        duration(age),
        plain(task.get("attempt")),
        f"{error[: MAX_ERROR_CHARACTERS - 1]}…" if len(error) > MAX_ERROR_CHARACTERS else error,
    ]


def tasks(rows: Sequence[Sequence[str]], paint: Paint) -> str:
    """A line a task."""
    return table(_HEADER, rows, paint, right=frozenset({"ATTEMPT"})) if rows else "no tasks"


def task(document: Document, paint: Paint) -> str:
    """The facts, below them the answer, and then what was changed."""
    facts, result = screen(_title(document, paint), _facts(document)), mapping(document.get("result"))
    text, diff = result.get("text"), result.get("diff")
    told = f"{facts}\n\n{clean(text)}".rstrip("\n") if isinstance(text, str) else facts
    return "\n".join([told, "", *lines(diff, MAX_DIFF_LINES)]) if isinstance(diff, str) else told


# What of a call's input says most, by its name.
_TELLING = ("command", "file_path", "notebook_path", "pattern", "path", "description")
MAX_CALL = 200
MAX_DIFF_LINES = 200
"""Of what a task has changed; the whole is in the JSON."""
MAX_ASKED_LINES = 60
"""Of what a call would do: as much as somebody reads before they answer."""
MAX_LINE = 2000
"""Characters of a line that is asked for."""
# What a call would write, by its name in the input, and how that is marked.
_WRITTEN = (("old_string", "-"), ("new_string", "+"), ("content", "+"), ("new_source", "+"))


def lines(text: str, most: int) -> Iterator[str]:
    """Text in lines that can do nothing to a terminal; says what it leaves out."""
    every = clean(text).rstrip("\n").split("\n")
    for line in every[:most]:
        left = len(line) - MAX_LINE
        yield line if left <= 0 else f"{line[:MAX_LINE]}… ({left} more characters)"
    if len(every) > most:
        yield f"… ({len(every) - most} more lines)"


def proposal(given: object, diff: object) -> Iterator[str]:
    """What a call would do, as far as :func:`call` does not tell it: its diff, its command, or what else it says."""
    inputs = mapping(given)
    command = inputs.get("command")
    written = [(mark, text) for name, mark in _WRITTEN if isinstance(text := inputs.get(name), str)]
    if isinstance(diff, str):
        yield from lines(diff, MAX_ASKED_LINES)
    elif isinstance(command, str):
        if "\n" in command.strip() or len(command) > MAX_CALL:
            yield from lines(command, MAX_ASKED_LINES)
    elif written:
        for mark, text in written:
            yield from (f"{mark} {line}" for line in lines(text, MAX_ASKED_LINES))
    elif len(inputs) > 1 or len(json.dumps(dict(inputs))) > MAX_CALL:
        yield from lines(json.dumps(dict(inputs), indent=2, ensure_ascii=False), MAX_ASKED_LINES)


def call(tool: object, given: object) -> str:
    """A tool call in a line."""
    inputs = mapping(given)
    said = next((inputs[name] for name in _TELLING if isinstance(inputs.get(name), str)), None)
    told = plain(" ".join(str(said).split()) if said is not None else json.dumps(dict(inputs)))
    cut = told if len(told) <= MAX_CALL else f"{told[:MAX_CALL]}…"
    return f"{plain(tool)}: {cut}" if inputs else plain(tool)


def _title(document: Document, paint: Paint) -> str:
    parts = [plain(document.get("id")), paint(plain(document.get("state")))]
    started, finished = document.get("started_at"), document.get("finished_at")
    if isinstance(started, int | float) and isinstance(finished, int | float):
        parts.append(f"took {duration(finished - started)}")
    return " · ".join(parts)


def _facts(document: Document) -> Iterator[tuple[str, str]]:
    for key in ("kind", "model", "lane"):
        yield key, known(document.get(key))
    for key, name in (("created_at", "created"), ("started_at", "started"), ("finished_at", "finished")):
        yield name, _moment(document.get(key))
    cancel_requested = _moment(document.get("cancel_requested_at"))
    yield "cancel", cancel_requested and f"asked for {cancel_requested}"
    for key, name in (
        ("attempt", "attempt"),
        ("priority", "priority"),
        ("batch_id", "batch"),
        ("session_id", "session"),
    ):
        yield name, known(document.get(key))
    yield "tokens", _tokens(mapping(document.get("usage")))
    cost = document.get("cost_usd")
    yield "cost", f"${cost:.6f}" if isinstance(cost, int | float) else ""
    result = mapping(document.get("result"))
    yield "stopped by", known(result.get("stop_reason"))
    yield "files", _files(result.get("files"))
    yield "error", _error(document.get("error"))
    metadata = mapping(document.get("metadata"))
    yield "metadata", ", ".join(f"{plain(name)}={plain(value)}" for name, value in metadata.items())


def _files(files: object) -> str:
    named = [plain(name) for name in files] if isinstance(files, list) else []
    more = len(named) - MAX_FILES
    return ", ".join(named[:MAX_FILES]) + (f" and {more} more" if more > 0 else "")


def _moment(at: object) -> str:
    return "" if at is None else moment.told(at)


def _tokens(usage: Document) -> str:
    parts = [f"{plain(usage[key])} {name}" for key, name in _TOKENS.items() if usage.get(key)]
    return " · ".join(parts)


def _error(error: object) -> str:
    if not isinstance(error, Mapping):
        return ""
    return joined(": ", error.get("code"), error.get("message"))
