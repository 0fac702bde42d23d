"""``docs/configuration.md``, from the models of the settings and what ``etc/config.toml`` says of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from claude_daemon.config import fields
from claude_daemon.config.changes import FIXED, FIXED_PRESENCE
from claude_daemon.config.credential import CREDENTIALS
from claude_daemon.config.loading import FOREIGN, PROFILES
from claude_daemon.config.models import Settings
from claude_daemon.layers.report import texts
from claude_daemon.layers.schema import Octal, bare, is_secret, type_at, variables
from claude_daemon.layers.sources import STANDALONE
from claude_daemon.secret import Secret
from tests.docs.explained import Section, sections

ROOT: Final = Path(__file__).resolve().parents[2]
CONFIG: Final = ROOT / "etc" / "config.toml"

HEAD: Final = """\
# Configuration

Settings are read from five places, each over the one before: **defaults, the profile, `config.toml`, the environment,
flags**. All are merged before any is judged; all that is wrong is told at once, each with its place, and the daemon
ends with 78. A key or a variable that there is not is wrong too, and the nearest one that there is is named.

- `claude-daemon check-config` tells what a start would have, with the origin of every value.
- `claudectl config [KEY] [--changed]` tells what the running daemon has.
- `claudectl reload` (or SIGHUP) brings changes into force, those in the column *restart* excepted.
- [`etc/config.toml`](../etc/config.toml) is this page as a file to copy.

The file is `config.toml` in the home (`~/.claude-daemon`, `CLAUDE_DAEMON_HOME`), or what `--config` or
`CLAUDE_DAEMON_CONFIG` names. In it `"none"` is a value that is not set. Relative paths stand below the home. A secret
also comes from a file: `CLAUDE_DAEMON_WEBHOOKS__SECRET_FILE` names one, and systemd's credentials count as such.
"""
TAIL: Final = """\
This page is made from the settings themselves (`make docs`).
"""

# What a validator demands, in words.
_SAYS: Final[Mapping[Callable[..., Any], str]] = {
    fields._url: "URL",
    fields._redis_url: "URL",
    fields._network: "address or network",
    fields._timezone: "time zone",
    fields._resolved: "path",
    fields._absolute: "absolute path",
    fields._some: "",
    fields._short: "",
    fields._mode: "",
}
_PLURALS: Final = {
    "text": "texts",
    "whole number": "whole numbers",
    "URL": "URLs",
    "address or network": "addresses or networks",
    "absolute path": "absolute paths",
}
_NAMES: Final = {
    str: "text",
    bool: "true or false",
    int: "whole number",
    float: "number",
    Path: "path",
    Secret: "secret",
}


def page() -> str:
    """The whole page. Raises LookupError for a key that nobody has explained."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    explained = sections(CONFIG.read_text())
    yield HEAD
    yield from _profiles()
    yield from _variables()
    for name, info in Settings.model_fields.items():
        kind, _ = bare(info.rebuild_annotation())
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            yield from _section(name, kind, explained)
        else:
            yield from _named((name,), kind, explained)
    yield TAIL.rstrip("\n")


def _profiles() -> Iterator[str]:
    yield "## Profiles\n"
    yield "`--profile`, or `CLAUDE_DAEMON_PROFILE`; without either `dev`. The systemd units set `prod`.\n"
    yield "| profile | sets |\n|---|---|"
    for profile, tree in PROFILES.items():
        told = [
            f"`{section}.{key}` = `{_toml(value)}`" for section, keys in tree.items() for key, value in keys.items()
        ]
        yield f"| `{profile}` | {', '.join(told)} |"
    yield "\nIn `staging` and `prod` a sandbox that does not work leaves agents Read, Grep and Glob; `dev` warns.\n"


def _variables() -> Iterator[str]:
    foreign = " and ".join(f"`{name}` sets `{'.'.join(path)}`" for name, path in FOREIGN.items())
    yield "## Variables\n"
    yield (
        "Every key has one, `CLAUDE_DAEMON_<SECTION>__<KEY>`; lists are written with commas or as JSON, tables as JSON."
        f" Alone stand {_listed(STANDALONE)}. The credential comes from {_listed(list(CREDENTIALS))}, each also with"
        f" `_FILE`; {foreign}, below the file.\n"
    )


def _section(name: str, model: type[BaseModel], explained: Mapping[str, Section]) -> Iterator[str]:
    section = explained.get(name) or Section(name)
    yield f"## `[{name}]`\n"
    if section.prose:
        yield f"{_cell(section.prose)}\n"
    plain = {key: info for key, info in model.model_fields.items() if not _is_table(info)}
    if plain:
        yield "| key | | default | type | restart |\n|---|---|---|---|---|"
        told = ""
        for key in plain:
            prose = _prose(section, key)
            yield _row((name, key), "″" if prose and prose == told else prose)
            told = prose
        yield ""
    for key, info in model.model_fields.items():
        if _is_table(info):
            yield from _named((name, key), bare(info.rebuild_annotation())[0], explained)


def _prose(section: Section, key: str) -> str:
    """Raises LookupError."""
    if key not in section.keys:
        raise LookupError(f"etc/config.toml does not have {section.name}.{key}")
    return section.keys[key]


def _named(path: tuple[str, ...], kind: Any, explained: Mapping[str, Section]) -> Iterator[str]:
    """A table of names, or a list of tables."""
    name = ".".join(path)
    section = explained.get(name)
    if section is None:
        raise LookupError(f"etc/config.toml does not explain {name}")
    inner = next((arg for arg in reversed(get_args(kind)) if arg is not Ellipsis), kind)
    is_list = get_origin(kind) is tuple
    yield f"{'#' * (1 + len(path))} `{f'[[{name}]]' if is_list else f'[{name}]'}`\n"
    if section.prose:
        yield f"{_cell(section.prose)}\n"
    yield f"As a variable: `{_variable(path)}`.\n"
    if section.example:
        yield f"```toml\n{section.example}\n```\n"
    model, _ = bare(inner)
    if inspect.isclass(model) and issubclass(model, BaseModel):
        yield "| key | default | type |\n|---|---|---|"
        for key, info in model.model_fields.items():
            yield f"| `{key}` | {_default_of(info)} | {_type(key, info.rebuild_annotation())} |"
        yield ""
    else:
        rows = [(key, text) for key, text in texts(Settings()).items() if key.startswith(f"{name}.")]
        if rows:
            yield "| key | default |\n|---|---|"
            yield from (f"| `{key.removeprefix(f'{name}.')}` | `{text}` |" for key, text in rows)
            yield ""


def _row(path: tuple[str, str], prose: str) -> str:
    section, key = path
    annotation = type_at(Settings, path)
    variable = f"<sub>`{_variable(path)}`{'<br>also `…_FILE`' if is_secret(annotation) else ''}</sub>"
    text = texts(Settings())[f"{section}.{key}"]
    whole = text.removesuffix(".0")
    defaults = [f"`{whole}`"]
    for profile, tree in PROFILES.items():
        value = tree.get(section, {}).get(key)
        if value is not None and _toml(value) != text:
            defaults.append(f"{profile}: `{_toml(value)}`")
    default = "<br>".join(defaults)
    dotted = f"{section}.{key}"
    restart = "yes" if dotted in FIXED else "to set or unset" if dotted in FIXED_PRESENCE else ""
    return f"| `{key}`<br>{variable} | {_cell(prose)} | {default} | {_type(key, annotation)} | {restart} |"


def _variable(path: Sequence[str]) -> str:
    return next(name for name, known in variables(Settings).items() if tuple(path) == known)


def _is_table(info: FieldInfo) -> bool:
    return get_origin(bare(info.rebuild_annotation())[0]) not in (None, tuple, Literal)


def _type(key: str, annotation: Any) -> str:
    kind, notes = bare(annotation)
    told = _kind(key, kind, notes)
    return f"{told}, or `none`" if NoneType in notes else told


def _kind(key: str, kind: Any, notes: Sequence[object]) -> str:
    if get_origin(kind) is Literal:
        return _either([f"`{value}`" for value in get_args(kind)])
    if get_origin(kind) is tuple:
        inner, inner_notes = bare(get_args(kind)[0])
        if get_origin(inner) is Literal:
            return "list, see there"
        return f"list of {_PLURALS[_word('', inner, inner_notes)]}"
    if get_origin(kind) is not None:
        return f"table of name = {_type('', get_args(kind)[1])}"
    if any(note is Octal for note in notes):
        return "octal mode"
    return _word(key, kind, notes) + _bounds(notes)


def _word(key: str, kind: Any, notes: Sequence[object]) -> str:
    words = [said for note in notes if isinstance(note, AfterValidator) and (said := _SAYS[note.func])]
    return words[0] if words else "seconds" if key.endswith("_s") and kind is float else _NAMES[kind]


def _bounds(notes: Sequence[object]) -> str:
    limits = [limit for note in notes for limit in (note.metadata if isinstance(note, FieldInfo) else [note])]
    told = []
    for name, sign, tightest in (("ge", "≥", max), ("gt", ">", max), ("le", "≤", min), ("lt", "<", min)):
        values = [value for limit in limits if isinstance(value := getattr(limit, name, None), int | float)]
        if values:
            told.append(f"{sign} {tightest(values):,.6f}".rstrip("0").rstrip("."))
    return f" {', '.join(told)}" if told else ""


def _default_of(info: FieldInfo) -> str:
    if info.is_required():
        return "needed"
    return f"`{_toml(info.get_default(call_default_factory=True))}`"


def _toml(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _listed(names: Sequence[str]) -> str:
    *others, last = [f"`{name}`" for name in names]
    return f"{', '.join(others)} and {last}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
