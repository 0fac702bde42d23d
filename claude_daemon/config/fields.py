"""The types of single values, with the checks that pydantic has no word for."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationInfo

from claude_daemon.config.layout import Layout
from claude_daemon.layers.schema import NONE, Octal
from claude_daemon.secret import Secret

MAX_SOCKET_PATH_BYTES = 107
"""``sun_path`` holds 108 bytes, the last one a zero."""

T = TypeVar("T")


def _absolute(path: Path) -> Path:
    if not (path.is_absolute() or path.parts[:1] == ("~",)):
        raise ValueError("must be absolute")
    return path


def _resolved(path: Path, info: ValidationInfo) -> Path:
    return info.context.resolve(path) if isinstance(info.context, Layout) else path


def _short(path: Path) -> Path:
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"must be at most {MAX_SOCKET_PATH_BYTES} bytes long; {path} has {size}")
    return path


def _mode(mode: int) -> int:
    if mode & 0o600 != 0o600 or mode > 0o777:
        raise ValueError("must be an octal mode such as 0o600 that lets the owner read and write")
    return mode


def _url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be an http or https URL without query")
    if parts.username or parts.password:
        raise ValueError("must not hold a user or password")
    return url.rstrip("/")


def _redis_url(url: Secret) -> Secret:
    if urlsplit(url.reveal()).scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must be a redis://, rediss:// or unix:// URL")
    return url


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("must be an address or a network such as 10.0.0.0/8") from None
    return text


def _timezone(name: str) -> str:
    if name != "UTC":  # which needs no database
        try:
            ZoneInfo(name)
        except (KeyError, OSError, ValueError):
            raise ValueError("must be a time zone such as UTC or Europe/Berlin") from None
    return name


def _some(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("must name at least one; without such a rule it is left out")
    return values


def _maybe(value: object) -> object:
    return None if value in ("", NONE) else value


Maybe = Annotated[T | None, BeforeValidator(_maybe)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,127}$")]
"""Never begins with a dash: it stands in an argv."""
Texts = Annotated[tuple[Text, ...], Field(strict=False)]
SomeTexts = Annotated[tuple[Text, ...], Field(strict=False), AfterValidator(_some)]
ModelNames = Annotated[tuple[ModelName, ...], Field(strict=False), AfterValidator(_some)]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Ids = Annotated[tuple[CountOrZero, ...], Field(strict=False)]
Domain = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A trust domain, as keys are made in one."""
Url = Annotated[str, AfterValidator(_url)]
Urls = Annotated[tuple[Url, ...], Field(strict=False)]
RedisUrl = Annotated[Secret, AfterValidator(_redis_url)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], Field(strict=False)]
TimeZone = Annotated[Text, AfterValidator(_timezone)]
Mode = Annotated[int, Octal, AfterValidator(_mode)]
FilePath = Annotated[Path, Field(strict=False), AfterValidator(_resolved)]
SocketPath = Annotated[FilePath, AfterValidator(_short)]
RootPath = Annotated[Path, Field(strict=False), AfterValidator(_absolute), AfterValidator(_resolved)]
RootPaths = Annotated[tuple[RootPath, ...], Field(strict=False)]
Capability = Literal[
    "bare",
    "restricted",
    "permission_prompts",
    "late_bind",
    "clear",
    "set_model",
    "history",
    "interrupt",
    "composed",
    "system_block",
    "hooks",
    "todo_list",
    "client_tools",
    "sessions",
    "fork",
    "message_ids",
]
"""The rows of ``engine/capabilities.py``, which is not imported to keep the settings quick to load."""

Level = Literal["debug", "info", "warning", "error", "critical"]
