"""What is wrong with a Redis, in words that hold nothing secret."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Final

from redis import exceptions

_NOT_REDIS: Final = "what answers there is not Redis"

# By the code of its answer, or by the whole of one that has no code of its own. Nothing else of an answer is repeated:
# some quote the command that they do not like, and that may be the one with the password.
_ANSWERS: Final = {
    "NOAUTH": "it asks for a password, and redis.url has none",
    "WRONGPASS": "the user or the password in redis.url is wrong",
    "NOPERM": "the user in redis.url may not do that there",
    "LOADING": "it is still loading its data",
    "MASTERDOWN": "it is a replica that has lost its master",
    "DENIED": "it is in protected mode, for its own machine only",
    "invalid password": "the password in redis.url is wrong",
    "DB index is out of range": "it has no database of the number in redis.url",
    "max number of clients reached": "it has no room for another client",
}
_CODE: Final = re.compile("[A-Z]{2,24}")
_ERRNO: Final = re.compile(r"\[Errno (\d+)\]")


def why(error: Exception) -> str:
    """For people: why an attempt with the client has ended with this error."""
    for cause in _causes(error):
        if told := _told(cause):
            return told
    return "it has closed the connection"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The client wraps what the system says, and over a Unix socket what Redis says too."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _told(error: BaseException) -> str | None:
    """What this error says by itself."""
    if isinstance(error, TimeoutError | exceptions.TimeoutError):
        return "it does not answer"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS with it fails: {error.reason or 'the connection was closed'}"
    if isinstance(error, socket.gaierror):
        return f"its name is not found: {error.strerror}"
    if isinstance(error, OSError):
        return _system_told(error)
    if isinstance(error, exceptions.RedisError):
        return _answered(error)
    return f"{_NOT_REDIS} ({type(error).__name__})"  # the client itself breaks on some nonsense


def _system_told(error: OSError) -> str:
    """Where a name has several addresses asyncio puts what each of them said into one text: the first will do."""
    several = _ERRNO.search(str(error))
    number = error.errno or (int(several[1]) if several else None)
    return str(error) if number is None else os.strerror(number)


def _answered(error: exceptions.RedisError) -> str | None:
    """What Redis has answered; None when this is no answer, but what the client makes of the connection's state."""
    text = str(error)
    code = error.status_code or text.partition(" ")[0]
    for known in (code, text):
        if known in _ANSWERS:
            return f"{_ANSWERS[known]} ({code})"
    if isinstance(error, exceptions.AuthenticationError) and error.status_code:
        return f"it has no password, and redis.url has one ({code})"
    if isinstance(error, exceptions.ResponseError) and _CODE.fullmatch(code):
        return f"it answers with an error ({code})"
    nonsense = (exceptions.AuthenticationError, exceptions.ResponseError, exceptions.InvalidResponse)
    return _NOT_REDIS if isinstance(error, nonsense) else None
