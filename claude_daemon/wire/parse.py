"""From a body's bytes to a model's instance, or to every fault in it at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import ErrorDetails, PydanticCustomError

from claude_daemon.core.depth import deeper_than
from claude_daemon.core.errors import Code, Failure, Fault, Refusal

MAX_DEPTH: Final = 128
"""Nesting of arrays and objects. orjson writes at most 254 levels, and a request is wrapped in more later."""
MAX_FAULTS: Final = 50
"""Faults told for one body: nobody mends more in one go, and a body of 16 MiB could hold a million."""
MAX_FAULTS_IN_MESSAGE: Final = 5
"""Faults told in the one sentence that dialects without a list of faults show."""
MAX_NAME: Final = 64
"""Characters of a client's own field name that are repeated to it."""
UNSUPPORTED: Final = "unsupported_parameter"
"""The type of a validation error that means: well formed, and not to be had here."""

Model = TypeVar("Model", bound=BaseModel)


class _Found:
    """How many faults one validation has met so far."""

    __slots__ = ("faults",)

    def __init__(self) -> None:
        self.faults = 0


def _while_few(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    found = info.context
    if not isinstance(found, _Found):
        return handler(value)
    if found.faults > MAX_FAULTS:
        return value  # the whole is refused already
    try:
        return handler(value)
    except ValidationError as error:
        found.faults += error.error_count()
        raise


ONE_OF_MANY: Final = WrapValidator(_while_few)
"""Marks the items of every list whose length the client chooses: after :data:`MAX_FAULTS` faults the rest is not
looked at. (Without it, 16 MiB of wrong items hold the loop for a minute.)"""


def is_tag(part: int | str) -> bool:
    """Whether a part of an error's location names a union's member (``<…>`` in our models), not a field."""
    return isinstance(part, str) and part.startswith("<") and part.endswith(">")


def parse(model: type[Model], body: bytes) -> Model:
    """The body as an instance of `model`.

    Raises :class:`Refusal`: ``unsupported_parameter`` when all that is wrong are parameters which are unknown
    or refused by name, else ``invalid_request``. Its failure holds all faults; ``param`` is the first's path.
    """
    return validate(model, load(body))


def load(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` holds. Raises Refusal ``invalid_request`` for anything else.

    What it returns can be written again as JSON: no NaN, no lone surrogate, no deeper than :data:`MAX_DEPTH`.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal.because(Code.INVALID_REQUEST, _syntax(error, body)) from None
    if not isinstance(document, dict):
        raise Refusal.because(Code.INVALID_REQUEST, f"The body must be a JSON object, not {_kind(document)}.")
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and deeper_than(document, MAX_DEPTH):
        raise Refusal.because(Code.INVALID_REQUEST, f"The body is nested more than {MAX_DEPTH} levels deep.")
    return document


def validate(model: type[Model], document: Mapping[str, Any]) -> Model:
    """`document` as an instance of `model`; raises as :func:`parse` does."""
    try:
        return model.model_validate(document, context=_Found())
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        faults = [_fault(model, detail) for detail in details[:MAX_FAULTS]]
        invalid = any(d["type"] not in (UNSUPPORTED, "extra_forbidden") for d in details)
        code = Code.INVALID_REQUEST if invalid else Code.UNSUPPORTED_PARAMETER
        raise refusal(faults, code=code, total=len(details)) from None


def refusal(faults: Sequence[Fault], *, code: Code = Code.INVALID_REQUEST, total: int | None = None) -> Refusal:
    """One refusal that tells all `faults` (at least one); `total` where more were found than are given."""
    told = [f"{f.path}: {f.message}" if f.path else f.message for f in faults[:MAX_FAULTS_IN_MESSAGE]]
    total = total or len(faults)
    more = "many" if total > MAX_FAULTS else total - len(told)
    message = " ".join(told) + (f" (and {more} more)" if more else "")
    return Refusal(Failure(code=code, message=message, param=faults[0].path or None, faults=tuple(faults)))


def unsupported(why: str) -> PydanticCustomError:
    """What a validator raises for a value that is well formed and cannot be honoured. `why` is a sentence."""
    return PydanticCustomError(UNSUPPORTED, "{why}", {"why": why})


def wrong(why: str) -> PydanticCustomError:
    """What a validator raises for a value that makes no sense. `why` is a sentence."""
    return PydanticCustomError("wrong", "{why}", {"why": why})


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean `x`?`` with the known name nearest to `name`, or the empty string."""
    near = difflib.get_close_matches(name[:MAX_NAME], list(known), n=1, cutoff=0.7)
    return f" Did you mean `{near[0]}`?" if near else ""


def _syntax(error: orjson.JSONDecodeError, body: bytes) -> str:
    if "UTF-8" in error.msg and "BOM" not in error.msg:
        return f"The body is not valid UTF-8: see byte {_first_bad_byte(body)}."
    if "surrogate" in error.msg:
        what = "a string holds half of a surrogate pair, which is no character"
    else:
        what = error.msg
    offset = len(error.doc[: error.pos].encode())
    return f"The body is not valid JSON: {what} (byte {offset}, line {error.lineno}, column {error.colno})."


def _first_bad_byte(body: bytes) -> int:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _kind(document: object) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(document), "null")


def _fault(model: type[BaseModel], detail: ErrorDetails) -> Fault:
    parts = [part for part in detail["loc"] if not is_tag(part)]
    path = ".".join(str(part)[:MAX_NAME] for part in parts)
    return Fault(path=path, message=_sentence(model, parts, detail))


def _sentence(model: type[BaseModel], parts: Sequence[int | str], detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind == "missing":
        return "This field is required."
    if kind == "extra_forbidden":
        near = nearest(str(parts[-1]), _names(model)) if len(parts) == 1 else ""
        return f"This parameter is not known here.{near}"
    context = detail.get("ctx", {})
    if kind in ("too_short", "too_long"):
        bound = "At least" if kind == "too_short" else "At most"
        number = context["min_length" if kind == "too_short" else "max_length"]
        return f"{bound} {number} {'item' if number == 1 else 'items'}, and not {context['actual_length']}."
    if kind in _KINDS:
        return f"This must be {_KINDS[kind]}."
    message = detail["msg"].removeprefix("Value error, ")
    return message if message.endswith((".", "?")) else f"{message}."


_KINDS: Final[Mapping[str, str]] = {
    "dict_type": "an object",
    "model_type": "an object",
    "list_type": "an array",
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
}


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]
