"""What the model does by default: the knobs that markers turn for one prompt."""

import dataclasses
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, TypeVar

MAX_TOKENS: Final = 100_000
"""Longest default reply; beyond it, ask for bytes. Keeps one reply's deltas within some 20 MB of RAM."""
MAX_REPLY_BYTES: Final = 64 * 1024 * 1024
"""Largest reply; a test of huge answers needs 10 MB."""
MAX_DELAY_SECONDS: Final = 3600.0
"""No deadline under test is longer."""
MAX_COUNT: Final = 1_000_000
"""Upper end of every other number."""
ERROR_STATUSES: Final = frozenset({400, 401, 403, 404, 413, 429, 500, 529})

_E = TypeVar("_E", bound=StrEnum)


class FaultKind(StrEnum):
    """What goes wrong; the names are those of the markers."""

    ERROR = "error"
    HANG = "hang"
    STALL = "stall"
    CUT = "cut"
    MALFORMED = "malformed"
    ERROR_EVENT = "error-event"


class UsageKind(StrEnum):
    """How true the reported usage is."""

    EXACT = "exact"
    ABSENT = "absent"
    NEGATIVE = "negative"
    ABSURD = "absurd"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault: `status` is for ERROR, `after` (deltas that still arrive) for those in mid-stream."""

    kind: FaultKind
    status: int = 529
    after: int = 0

    def __post_init__(self) -> None:
        _require(isinstance(self.kind, FaultKind), "kind", f"one of {', '.join(FaultKind)}")
        _require(
            _is_int(self.status) and self.status in ERROR_STATUSES,
            "status",
            f"one of {sorted(ERROR_STATUSES)}",
        )
        _check_int("after", self.after, 0, MAX_COUNT)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The knobs of the package's table of markers. Raises ValueError naming a field out of range."""

    tokens: int | None = None
    text: str | None = None
    reply_bytes: int | None = None
    history: bool = False
    system: bool = False
    thinking: bool = False
    refusal: bool = False
    tools: tuple[str, ...] = ()
    inputs: tuple[Mapping[str, Any], ...] = ()
    repeat: int = 1
    one_by_one: bool = False
    structured: bool = True
    formats: bool = True
    invalid: bool = False
    usage: UsageKind = UsageKind.EXACT
    first_s: float = 0.0
    pace_s: float = 0.0
    fault: Fault | None = None
    retry_after_s: int | None = None
    times: int | None = None
    round: int | None = None
    drift: bool = False

    def __post_init__(self) -> None:
        for name in (
            "history",
            "system",
            "thinking",
            "refusal",
            "structured",
            "formats",
            "invalid",
            "drift",
            "one_by_one",
        ):
            _require(isinstance(getattr(self, name), bool), name, "true or false")
        _check_int("tokens", self.tokens, 1, MAX_TOKENS, optional=True)
        _check_int("reply_bytes", self.reply_bytes, 1, MAX_REPLY_BYTES, optional=True)
        _check_int("retry_after_s", self.retry_after_s, 0, MAX_COUNT, optional=True)
        _check_int("times", self.times, 0, MAX_COUNT, optional=True)
        _check_int("round", self.round, 1, MAX_COUNT, optional=True)
        _check_int("repeat", self.repeat, 0, MAX_COUNT)
        _check_seconds("first_s", self.first_s)
        _check_seconds("pace_s", self.pace_s)
        _require(self.text is None or isinstance(self.text, str), "text", "a string")
        named = all(isinstance(name, str) for name in self.tools) and "" not in self.tools
        _require(named, "tools", "names of tools")
        _require(all(isinstance(item, Mapping) for item in self.inputs), "inputs", "JSON objects")
        _require(isinstance(self.usage, UsageKind), "usage", f"one of {', '.join(UsageKind)}")
        _require(self.fault is None or isinstance(self.fault, Fault), "fault", "a fault")

    def to_json(self) -> dict[str, Any]:
        """All fields, as `from_json` reads them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: object) -> "Settings":
        """The settings in a JSON object; a missing field has its default. Raises ValueError for a bad one."""
        values = _known_fields(cls, data)
        for name in ("tools", "inputs"):
            if name in values:
                _require(isinstance(values[name], list), name, "a list")
                values[name] = tuple(values[name])
        if "usage" in values:
            values["usage"] = _member(UsageKind, "usage", values["usage"])
        if values.get("fault") is not None:
            values["fault"] = _fault_from_json(values["fault"])
        return cls(**values)


def _fault_from_json(data: object) -> Fault:
    values = _known_fields(Fault, data)
    values["kind"] = _member(FaultKind, "fault.kind", values.get("kind"))
    return Fault(**values)


def _known_fields(cls: type[Any], data: object) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{cls.__name__.lower()}: must be an object")
    unknown = data.keys() - {field.name for field in dataclasses.fields(cls)}
    if unknown:
        raise ValueError(f"{min(unknown)}: unknown field")
    return dict(data)


def _member(kind: type[_E], name: str, value: object) -> _E:
    _require(isinstance(value, str) and value in list(kind), name, f"one of {', '.join(kind)}")
    return kind(str(value))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_int(name: str, value: int | None, low: int, high: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    _require(
        value is not None and _is_int(value) and low <= value <= high,
        name,
        f"an integer from {low} to {high}",
    )


def _check_seconds(name: str, value: object) -> None:
    valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_DELAY_SECONDS
    _require(valid, name, f"seconds from 0 to {MAX_DELAY_SECONDS:.0f}")


def _require(condition: bool, name: str, wanted: str) -> None:
    if not condition:
        raise ValueError(f"{name}: must be {wanted}")
