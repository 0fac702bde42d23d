"""The models on offer, in the shape of Anthropic's list."""

from typing import Any, Final

_MODELS: Final = (
    ("claude-opus-5", "Claude Opus 5", "2026-04-16T00:00:00Z"),
    ("claude-sonnet-5", "Claude Sonnet 5", "2026-03-05T00:00:00Z"),
    ("claude-opus-4-5", "Claude Opus 4.5", "2025-11-24T00:00:00Z"),
    ("claude-haiku-4-5", "Claude Haiku 4.5", "2025-10-15T00:00:00Z"),
    ("claude-haiku-4-5-20251001", "Claude Haiku 4.5", "2025-10-01T00:00:00Z"),
    ("claude-sonnet-4-5", "Claude Sonnet 4.5", "2025-09-29T00:00:00Z"),
)


def model(model_id: str) -> dict[str, Any] | None:
    """One model, or None. Requests may name models that are not listed."""
    return next((entry for entry in _entries() if entry["id"] == model_id), None)


def models() -> dict[str, Any]:
    """All models, newest first, on one page."""
    entries = _entries()
    return {"data": entries, "has_more": False, "first_id": entries[0]["id"], "last_id": entries[-1]["id"]}


def _entries() -> list[dict[str, Any]]:
    return [
        {
            "type": "model",
            "id": model_id,
            "display_name": name,
            "created_at": created_at,
            "lifecycle": "active",
            "max_input_tokens": 200_000,
            "max_tokens": 64_000,
        }
        for model_id, name, created_at in _MODELS
    ]
