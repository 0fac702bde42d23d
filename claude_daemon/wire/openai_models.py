"""The list of models in a form that both the OpenAI and the Anthropic client libraries read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def model_object(id: str, *, created: int, display_name: str | None = None) -> dict[str, Any]:
    """One model; `created` is in seconds since the epoch, `display_name` its id where none is given."""
    return {
        "id": id,
        "object": "model",
        "created": created,
        "owned_by": "anthropic",
        "type": "model",
        "display_name": display_name or id,
        "created_at": datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
    }


def models_list(aliases: Mapping[str, str], *, created: int) -> dict[str, Any]:
    """All aliases, each under the name of its model, and then the models themselves."""
    names = {alias: model for alias, model in aliases.items() if alias != model}
    names |= {model: model for model in aliases.values()}
    data = [model_object(id, created=created, display_name=name) for id, name in names.items()]
    return {
        "object": "list",
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
