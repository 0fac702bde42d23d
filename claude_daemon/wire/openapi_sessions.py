"""Sessions in the OpenAPI document. One begins with a task's ``session``."""

from __future__ import annotations

from claude_daemon.wire.openapi_parts import ANY_ROUTE, Json, answer, errors, path_id
from claude_daemon.wire.openapi_tasks import DEFAULT_LIMIT, MAX_LIMIT
from claude_daemon.wire.problem import CONTENT_TYPE

_BUSY = "A turn of the session, or a fork of it, waits or runs."


def paths() -> Json:
    named = [path_id("A session.")]
    return {
        "/v1/sessions": {"get": _list()},
        "/v1/sessions/{id}": {"parameters": named, "get": _get(), "delete": _delete()},
    }


def _list() -> Json:
    limits = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}
    return {
        "operationId": "listSessions",
        "tags": ["sessions"],
        "summary": "The key's sessions, newest first",
        "parameters": [
            {"name": "limit", "in": "query", "description": "How many at once.", "schema": limits},
            {
                "name": "cursor",
                "in": "query",
                "description": "`next` of the page before.",
                "schema": {"type": "string"},
            },
        ],
        "responses": {"200": answer("A page.", "SessionList")} | _problems("400", *ANY_ROUTE, "503"),
    }


def _get() -> Json:
    return {
        "operationId": "getSession",
        "tags": ["sessions"],
        "summary": "A session as it is now",
        "responses": {"200": answer("The session.", "Session")} | _problems(*ANY_ROUTE, "404", "503"),
    }


def _delete() -> Json:
    return {
        "operationId": "deleteSession",
        "tags": ["sessions"],
        "summary": "Delete a session, with all that was said in it",
        "responses": {"200": answer("It is gone.", "SessionDeleted")}
        | _problems(*ANY_ROUTE, "404", "503", status_409=_BUSY),
    }


def _problems(*statuses: str, **told: str) -> Json:
    return errors("Problem", *statuses, media_type=CONTENT_TYPE, **told)
