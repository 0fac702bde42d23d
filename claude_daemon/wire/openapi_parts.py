"""What the operations of the OpenAPI document are put together from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

REF: Final = "#/components/schemas/{model}"

Json = dict[str, Any]

SECURITY: Final[list[dict[str, list[str]]]] = [{"bearer": []}, {"apiKey": []}]

ERRORS: Final[Mapping[str, str]] = {
    "400": "The request is wrong, or asks for what cannot be had; all faults are told at once.",
    "401": "No key, or one that is not valid, or not any more.",
    "402": "A budget is spent.",
    "403": "The key may not do this, or is suspended, or the web page may not call us.",
    "404": "Unknown, or not this key's.",
    "408": "The body was not complete in time.",
    "409": "It conflicts with what is there; `code` tells how.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "421": "Not a host of this service.",
    "429": "Too many requests; see Retry-After. On OpenAI routes also a budget that is spent (`insufficient_quota`).",
    "499": "Somebody has cancelled it.",
    "502": "The upstream cannot be reached or has failed, or the engine has crashed.",
    "503": "Draining, or overloaded; see Retry-After.",
    "504": "The deadline has passed.",
    "529": "Overloaded; see Retry-After.",
}
ANY_ROUTE: Final = ("401", "403", "421")
"""What every route that needs a key may answer, before it looks at anything else."""
ANY_BODY: Final = (*ANY_ROUTE, "400", "408", "413", "415", "503")
"""The same for those that read a body and begin something."""


def ref(model: str) -> Json:
    return {"$ref": ref_to(model)}


def ref_to(model: str) -> str:
    return REF.format(model=model)


def body(model: str) -> Json:
    return {"required": True, "content": {"application/json": {"schema": ref(model)}}}


def answer(description: str, model: str, *, media_type: str = "application/json") -> Json:
    return {"description": description, "content": {media_type: {"schema": ref(model)}}}


def events(description: str) -> Json:
    """The content of server-sent events; what its ``data:`` is can only be told in words."""
    return {"text/event-stream": {"schema": {"type": "string", "description": description}}}


def headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def errors(model: str, *statuses: str, media_type: str = "application/json", **told: str) -> Json:
    """Error answers in the order of their status; ``told``: ``status_409="…"`` says more than is usual."""
    own = {name.removeprefix("status_"): text for name, text in told.items()}
    texts = {**{status: ERRORS[status] for status in statuses}, **own}
    return {status: answer(texts[status], model, media_type=media_type) for status in sorted(texts)}


def path_id(what: str, name: str = "id") -> Json:
    return {"name": name, "in": "path", "required": True, "description": what, "schema": {"type": "string"}}
