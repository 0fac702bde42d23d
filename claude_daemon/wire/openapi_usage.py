"""Usage in the OpenAPI document."""

from __future__ import annotations

from typing import Final

from claude_daemon.wire.openapi_parts import ANY_ROUTE, Json, answer, errors
from claude_daemon.wire.problem import CONTENT_TYPE

GROUPS: Final = ("key", "model", "day")
DEFAULT_DAYS: Final = 7
MAX_DAYS: Final = 366
"""As ``service.usage`` has it."""


def paths() -> Json:
    return {"/v1/usage": {"get": _usage()}}


def _usage() -> Json:
    days = {"type": "integer", "minimum": 1, "maximum": MAX_DAYS, "default": DEFAULT_DAYS}
    return {
        "operationId": "getUsage",
        "tags": ["usage"],
        "summary": "What the key has used and what it cost, and how its budget stands",
        "parameters": [
            {
                "name": "by",
                "in": "query",
                "description": "What it is added up by.",
                "schema": {"type": "string", "enum": list(GROUPS), "default": "day"},
            },
            {
                "name": "days",
                "in": "query",
                "description": "Of the last so many days, today included, by the calendar of the budgets.",
                "schema": days,
            },
        ],
        "responses": {"200": answer("A row for each.", "Usage")}
        | errors("Problem", "400", *ANY_ROUTE, "503", media_type=CONTENT_TYPE),
    }
