"""Secrets: texts that show themselves to :meth:`Secret.reveal` only, and the look of keys and tokens."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import NoReturn

from pydantic_core import core_schema

SECRET_LIKE = re.compile(r"(?<![A-Za-z0-9])(sk-|cd_)[A-Za-z0-9_-]{8,}|\b(Bearer\s+)[^\s\"',;]+", re.IGNORECASE)
"""Text that is a key or token wherever it stands. Groups 1 and 2 hold what may be shown."""


class Secret:
    """A text that is shown only by :meth:`reveal`.

    ``str``, ``repr`` and pydantic's JSON give ``***``; ``json`` and ``orjson`` refuse it, and so does pickle.
    Comparison takes the same time wherever two secrets differ. Never empty; raises ValueError for "".
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not text:
            raise ValueError("a secret must not be empty")
        self._text = text

    def reveal(self) -> str:
        return self._text

    def digest(self) -> str:
        """SHA-256 in hex: equal for equal secrets, and safe to compare later."""
        return hashlib.sha256(self._bytes()).hexdigest()

    def _bytes(self) -> bytes:
        return self._text.encode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._bytes(), other._bytes())

    def __hash__(self) -> int:
        return hash(self._text)

    def __str__(self) -> str:
        return "***"

    def __repr__(self) -> str:
        return "Secret(***)"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> core_schema.CoreSchema:
        masked = core_schema.plain_serializer_function_ser_schema(str, when_used="json")
        return core_schema.no_info_plain_validator_function(cls._parse, serialization=masked)

    @classmethod
    def _parse(cls, value: object) -> Secret:
        if isinstance(value, str):
            return cls(value)
        if isinstance(value, Secret):
            return value
        raise ValueError("must be a string")
