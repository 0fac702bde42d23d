"""``claudectl keys``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from claudectl import moment
from claudectl.client import Client
from claudectl.errors import Conflict, ControlError, Mismatch
from claudectl.options import Group, Options
from claudectl.render import Document, Paint, documents, plain, table

_SECRET_MODE = 0o600


@click.group(cls=Group, name="keys")
def command() -> None:
    """API keys: who may call the public port, and what for.

    \b
    Examples:
      claudectl keys create alice
      claudectl keys list
    """


@command.command("create")
@click.argument("name", metavar="NAME")
@click.option("--role", metavar="R", help="readonly, standard (without it), full, or one of [roles.<name>].")
@click.option("--domain", metavar="D", help="Share warm processes with the keys of this domain. Without it: with none.")
@click.option("--expires", metavar="D", help="When it ends: in 30d or 12h, or at a date like 2027-01-31.")
@click.option("-q", "quiet", is_flag=True, help="Print the key and nothing else.")
@click.option("--save", metavar="FILE", help="Write the key to FILE, which only you can read, and do not print it.")
@click.pass_obj
def create(
    options: Options,
    name: str,
    role: str | None,
    domain: str | None,
    expires: str | None,
    quiet: bool,
    save: str | None,
) -> None:
    """Make a key named NAME, and show it this once.

    Nobody can show it again: the daemon keeps a digest. A name that another key has is a conflict, 7, and so is a
    FILE that is there already.

    The role says what may be asked for. What a task does with a tool is confined by the sandbox alone, whatever
    patterns it names: without one, a key whose role has Bash is the daemon's own Unix user.

    \b
    Examples:
      claudectl keys create ci --role readonly --expires 30d
      claudectl keys create alice --save alice.key
      curl -H "x-api-key: $(claudectl keys create demo -q)" http://127.0.0.1:8006/v1/models
    """
    if quiet and (save is not None or options.json):
        raise click.UsageError("-q prints the key alone: it goes neither with --save nor with --json")
    body: dict[str, object] = {"name": name}
    body |= {key: value for key, value in (("role", role), ("domain", domain)) if value is not None}
    if expires is not None:
        body["expires"] = _moment(expires)
    client = options.client()
    document: Document = client.post("keys", body) if save is None else _saved(client, body, save)
    if quiet:
        click.echo(_secret(document))
    else:
        options.show(document, _created)


def _moment(text: str) -> float:
    try:
        return moment.after(text, time.time())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--expires") from None


def _saved(client: Client, body: Document, file: str) -> Document:
    """The answer without the secret, which is in the file. It is opened first: no key is made that nobody gets."""
    with _new_file(file) as descriptor:
        document = client.post("keys", body)
        try:
            os.write(descriptor, f"{_secret(document)}\n".encode())
            os.fsync(descriptor)
        except OSError as error:
            why = f"the key was made and is lost: {plain(document.get('id'))}"
            raise ControlError(f"{file}: {error.strerror or error}; {why}") from None
    return {**{name: value for name, value in document.items() if name != "key"}, "saved": file}


@contextmanager
def _new_file(file: str) -> Iterator[int]:
    """Its descriptor. After an error it is not there any more."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _SECRET_MODE)
    except FileExistsError:
        raise Conflict(f"{plain(file)} is there already") from None
    except (OSError, ValueError) as error:
        raise ControlError(f"{plain(file)}: {getattr(error, 'strerror', None) or error}") from None
    try:
        yield descriptor
    except BaseException:
        with suppress(OSError):
            Path(file).unlink()
        raise
    finally:
        os.close(descriptor)


def _secret(document: Document) -> str:
    secret = document.get("key")
    if not isinstance(secret, str) or not secret.isascii() or not secret.isprintable():
        raise Mismatch("the daemon's answer holds no key")
    return secret


def _created(document: Document, _: Paint) -> str:
    name, key_id, role, domain = (plain(document.get(fact)) for fact in ("name", "id", "role", "domain"))
    head = f"{name} · {key_id} · role {role} · domain {domain}"
    if document.get("expires_at") is not None:
        head += f" · until {moment.told(document['expires_at'])}"
    if "saved" in document:
        return f"{head}\nthe key is in {plain(document['saved'])}"
    return f"{head}\n{_secret(document)}\nKeep it: it is not shown again."


@command.command("list")
@click.pass_obj
def list_(options: Options) -> None:
    """List the keys that were made, the oldest first; the home's own, local, is not among them.

    \b
    Examples:
      claudectl keys list
      claudectl keys list --json | jq -r '.keys[] | select(.role == "full") | .name'
    """
    _, document = options.client().get("keys")
    options.show(document, _keys)


_HEADER = ("NAME", "ID", "ROLE", "DOMAIN", "CREATED", "EXPIRES")


def _keys(document: Document, paint: Paint) -> str:
    rows = [_row(key) for key in documents(document.get("keys"))]
    return table(_HEADER, rows, paint, right=frozenset()) if rows else "no keys"


def _row(key: Document) -> list[str]:
    return [
        *(plain(key.get(fact)) for fact in ("name", "id", "role", "domain")),
        *(moment.told(key.get(at)) for at in ("created_at", "expires_at")),
    ]
