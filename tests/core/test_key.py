"""Keys: made, digested, found."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace

import pytest

from claude_daemon.core.key import Key, Keyring, Unfit, digest, new_secret, well_formed


def key_of(secret: str, name: str = "alice") -> Key:
    return Key(id=f"key_{name}", name=name, digest=digest(secret), role="standard", trust_domain=f"key_{name}")


def test_a_secret_is_cd_and_32_bytes_in_base64url() -> None:
    assert new_secret(bytes) == "cd_" + "A" * 43
    assert new_secret(lambda n: b"\xff" * n) == "cd_" + "_" * 42 + "8"
    assert all(well_formed(new_secret(secrets.token_bytes)) for _ in range(200))


def test_a_keyring_finds_each_of_its_keys_and_no_other() -> None:
    mine, yours, other = (new_secret(secrets.token_bytes) for _ in range(3))
    ring = Keyring([key_of(mine, "me"), key_of(yours, "you")])
    assert [key.name for key in ring] == ["me", "you"] and len(ring) == 2
    assert ring.identify(mine) == key_of(mine, "me")
    assert ring.identify(yours) == key_of(yours, "you")
    assert ring.identify(other) is Unfit.UNKNOWN
    assert Keyring().identify(mine) is Unfit.UNKNOWN


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "cd_",
        "cd_" + "A" * 42,
        "cd_" + "A" * 44,
        "cd_" + "A" * 43 + "\n",
        "sk-" + "A" * 43,
        "cd_" + "é" * 43,
        "cd_" + "\udcff" * 43,
        "cd_" + "A" * 42 + "=",
        " cd_" + "A" * 43,
    ],
)
def test_what_cannot_be_a_key_is_malformed_even_if_its_digest_were_known(secret: str) -> None:
    assert Keyring([key_of(secret)]).identify(secret) is Unfit.MALFORMED


def test_a_key_of_ten_megabytes_costs_no_hash() -> None:
    huge = "cd_" + "A" * 10_000_000
    ring = Keyring([key_of(new_secret(secrets.token_bytes))])
    started = time.perf_counter()
    for _ in range(1000):
        ring.identify(huge)
    assert time.perf_counter() - started < 1  # hashing it a thousand times takes seconds


def test_two_keys_with_one_secret_are_refused() -> None:
    secret = new_secret(secrets.token_bytes)
    with pytest.raises(ValueError, match="key_a and key_b"):
        Keyring([key_of(secret, "a"), key_of(secret, "b")])


def test_a_key_is_good_until_it_expires() -> None:
    key = key_of(new_secret(secrets.token_bytes))
    assert key.unfit(1e12) is None and key.ends_at is None
    ends = replace(key, expires_at=100.0)
    assert [ends.unfit(at) for at in (99.9, 100.0, 100.1)] == [None, Unfit.EXPIRED, Unfit.EXPIRED]
    assert ends.ends_at == 100.0


def test_an_old_secret_is_good_until_it_is_replaced_and_is_the_same_key() -> None:
    old, new = (new_secret(secrets.token_bytes) for _ in range(2))
    key = replace(key_of(new), expires_at=200.0)
    ring = Keyring([key, key.with_old(digest(old), 100.0)])
    found = ring.identify(old)
    assert isinstance(found, Key) and (found.id, found.ends_at, ring.identify(new)) == (key.id, 100.0, key)
    assert [found.unfit(at) for at in (99.9, 100.0)] == [None, Unfit.ROTATED] and key.unfit(100.0) is None
    assert ring.now(found) is found and Keyring([key]).now(found) is None


def test_what_counts_most_is_told_of_a_key_that_is_not_good_for_several_reasons() -> None:
    key = replace(key_of(new_secret(secrets.token_bytes)), suspended=True)
    assert key.unfit(0.0) is Unfit.SUSPENDED
    assert replace(key, expires_at=1.0).unfit(1.0) is Unfit.EXPIRED
    assert replace(key, expires_at=1.0, revoked=True).unfit(1.0) is Unfit.REVOKED


def test_neither_secret_nor_digest_is_in_the_repr() -> None:
    secret = new_secret(secrets.token_bytes)
    shown = repr(key_of(secret))
    assert secret not in shown and "digest" not in shown and digest(secret).hex() not in shown


def test_a_look_up_costs_less_than_5_microseconds() -> None:
    made = [new_secret(secrets.token_bytes) for _ in range(10_000)]
    ring = Keyring(key_of(secret, str(number)) for number, secret in enumerate(made))
    asked = made[::100]
    best = min(_look_up_seconds(ring, asked) for _ in range(20))
    assert best / len(asked) < 5e-6


def _look_up_seconds(ring: Keyring, asked: list[str]) -> float:
    started = time.thread_time()
    for secret in asked:
        ring.identify(secret)
    return time.thread_time() - started
