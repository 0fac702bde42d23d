"""Secrets: shown to ``reveal`` alone."""

from __future__ import annotations

import copy
import json
import pickle

import orjson
import pytest

from claude_daemon.config import Settings
from claude_daemon.secret import Secret


def test_a_secret_shows_itself_to_reveal_only() -> None:
    secret = Secret("hunter2")
    assert secret.reveal() == "hunter2"
    for text in (str(secret), repr(secret), f"{secret}", f"{[secret]}", f"{secret:>40}"):
        assert "hunter2" not in text
        assert "***" in text


def test_a_secret_compares_with_secrets_only() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert Secret("a").digest() == Secret("a").digest() != Secret("b").digest()


def test_a_secret_is_not_serialised_by_accident() -> None:
    secret = Secret("hunter2")
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(TypeError):
        orjson.dumps(secret)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)
    assert copy.deepcopy([secret]) == [secret]
    settings = Settings.model_validate({"webhooks": {"secret": "hunter2"}})
    assert "hunter2" not in settings.model_dump_json() + repr(settings)


def test_an_empty_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Secret("")
