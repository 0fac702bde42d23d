"""``claudectl keys``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from claudectl import consent, moment
from claudectl.client import Client, below
from claudectl.errors import Conflict, ControlError, Mismatch
from claudectl.options import Group, Options, amount
from claudectl.render import Document, Paint, documents, plain, table

_SECRET_MODE = 0o600
# Ten thousand tasks of one key are cancelled in some seconds.
REVOKE_SECONDS = 60.0
_MAX_NAMES = 10


def _dollars(text: str) -> float:
    return amount(text, "an amount in USD")


@click.group(cls=Group, name="keys")
def command() -> None:
    """API keys: who may call the public port, and what for.

    \b
    Examples:
      claudectl keys create alice
      claudectl keys list
      claudectl keys rotate alice --overlap 1d
      claudectl keys revoke alice
    """


@command.command("create")
@click.argument("name", metavar="NAME")
@click.option("--role", metavar="R", help="readonly, standard (without it), full, or one of [roles.<name>].")
@click.option("--domain", metavar="D", help="Share warm processes with the keys of this domain. Without it: with none.")
@click.option("--budget-usd-day", type=_dollars, metavar="X", help="What it may spend in a day, in USD.")
@click.option("--budget-usd-month", type=_dollars, metavar="X", help="What it may spend in a month, in USD.")
@click.option("--expires", metavar="D", help="When it ends: in 30d or 12h, or at a date like 2027-01-31.")
@click.option("-q", "quiet", is_flag=True, help="Print the key and nothing else.")
@click.option("--save", metavar="FILE", help="Write the key to FILE, which only you can read, and do not print it.")
@click.pass_obj
def create(
    options: Options,
    name: str,
    role: str | None,
    domain: str | None,
    budget_usd_day: float | None,
    budget_usd_month: float | None,
    expires: str | None,
    quiet: bool,
    save: str | None,
) -> None:
    """Make a key named NAME, and show it this once.

    Nobody can show it again: the daemon keeps a digest. A name that another key has is a conflict, 7, and so is a
    FILE that is there already.

    Without budgets of its own a key is bounded by those of its trust domain and of all keys (the configuration's
    [budget]); 0 lets it spend nothing.

    The role says what may be asked for. What a task does with a tool is confined by the sandbox alone, whatever
    patterns it names: without one, a key whose role has Bash is the daemon's own Unix user.

    Keys of one domain share warm processes, one after the other, and nothing else; those that do are told.

    \b
    Examples:
      claudectl keys create ci --role readonly --expires 30d
      claudectl keys create alice --save alice.key --budget-usd-day 5
      curl -H "x-api-key: $(claudectl keys create demo -q)" http://127.0.0.1:8006/v1/models
    """
    _check_secret_options(options, quiet, save)
    body: dict[str, object] = {"name": name}
    wished = {
        "role": role,
        "domain": domain,
        "budget_usd_day": budget_usd_day,
        "budget_usd_month": budget_usd_month,
    }
    body |= {key: value for key, value in wished.items() if value is not None}
    if expires is not None:
        body["expires"] = _moment(expires)
    _show_secret(options, "keys", body, quiet=quiet, save=save)


@command.command("rotate")
@click.argument("key", metavar="KEY")
@click.option("--overlap", metavar="D", help="Both secrets are good so long: 1d, 12h. Without it, the old one no more.")
@click.option("-q", "quiet", is_flag=True, help="Print the key and nothing else.")
@click.option("--save", metavar="FILE", help="Write the key to FILE, which only you can read, and do not print it.")
@click.pass_obj
def rotate(options: Options, key: str, overlap: str | None, quiet: bool, save: str | None) -> None:
    """Give KEY, a name or an id, a new secret, and show it this once.

    Everything else of the key stays: its id, its role, its tasks and sessions. What is open with the old secret is cut
    when the time of that is over. A second rotation ends the overlap of the first.

    \b
    Examples:
      claudectl keys rotate alice --overlap 1d --save alice.key
      claudectl keys rotate alice -q
    """
    _check_secret_options(options, quiet, save)
    body: dict[str, object] = {}
    if overlap is not None:
        try:
            body["overlap_s"] = moment.length(overlap)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--overlap") from None
    _show_secret(options, below("keys", key, "rotate"), body, quiet=quiet, save=save)


@command.command("suspend")
@click.argument("key", metavar="KEY")
@click.pass_obj
def suspend(options: Options, key: str) -> None:
    """Refuse KEY, a name or an id, until it is resumed.

    New requests are answered 403, and WebSockets and streams of events are closed. What is under way runs on: its chats
    to their end, its tasks that run, and those that wait. claudectl tasks cancel ends one of them, keys revoke all.

    \b
    Example:
      claudectl keys suspend alice
    """
    _change(options, key, "suspend", "suspended")


@command.command("resume")
@click.argument("key", metavar="KEY")
@click.pass_obj
def resume(options: Options, key: str) -> None:
    """End the suspension of KEY, a name or an id.

    \b
    Example:
      claudectl keys resume alice
    """
    _change(options, key, "resume", "resumed")


@command.command("revoke")
@click.argument("key", metavar="KEY")
@click.option("--yes", is_flag=True, help="Do not ask, not even on a terminal.")
@click.pass_obj
def revoke(options: Options, key: str, yes: bool) -> None:
    """End KEY, a name or an id, for ever.

    It is refused at once, what is open with it is closed, its tasks are cancelled, those that wait and those that run,
    and no webhook of theirs is sent any more. What they have left stays for queue.retention_days, and its name is free.

    \b
    Example:
      claudectl keys revoke alice --yes
    """
    if not yes:
        consent.ask(f"Revoke {plain(key)} for ever, and cancel its tasks?", otherwise="nothing was revoked")
    document = options.client().post(below("keys", key, "revoke"), {}, patience_seconds=REVOKE_SECONDS)
    options.show(document, _revoked)


def _revoked(document: Document, _: Paint) -> str:
    number = document.get("tasks_cancelled")
    tasks = f" · {number} task{'s' * (number != 1)} cancelled" if isinstance(number, int) and number else ""
    return f"{plain(document.get('name'))} · {plain(document.get('id'))} · revoked{tasks}"


def _change(options: Options, key: str, verb: str, done: str) -> None:
    document = options.client().post(below("keys", key, verb), {})
    options.show(document, lambda answer, _: f"{plain(answer.get('name'))} · {plain(answer.get('id'))} · {done}")


def _check_secret_options(options: Options, quiet: bool, save: str | None) -> None:
    if quiet and (save is not None or options.json):
        raise click.UsageError("-q prints the key alone: it goes neither with --save nor with --json")


def _show_secret(options: Options, path: str, body: Document, *, quiet: bool, save: str | None) -> None:
    client = options.client()
    document: Document = client.post(path, body) if save is None else _saved(client, path, body, save)
    if quiet:
        click.echo(_secret(document))
    else:
        options.show(document, _created)


def _moment(text: str) -> float:
    try:
        return moment.after(text, time.time())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--expires") from None


def _saved(client: Client, path: str, body: Document, file: str) -> Document:
    """The answer without the secret, which is in the file. It is opened first: no key is made that nobody gets."""
    with _new_file(file) as descriptor:
        document = client.post(path, body)
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
    for span in ("day", "month"):
        if document.get(f"budget_usd_{span}") is not None:
            head += f" · {plain(document[f'budget_usd_{span}'])} USD a {span}"
    if others := document.get("shares_with"):
        head += f"\nshares warm processes with {_names(others)}"
    if (until := document.get("previous_until")) is not None:
        over = isinstance(until, int | float) and until <= time.time()
        head += "\nthe old one is good no more" if over else f"\nthe old one is good until {moment.told(until)}"
    if "saved" in document:
        return f"{head}\nthe key is in {plain(document['saved'])}"
    return f"{head}\n{_secret(document)}\nKeep it: it is not shown again."


def _names(others: object) -> str:
    names = [plain(name) for name in others] if isinstance(others, list) else []
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


@command.command("list")
@click.option("--all", "every", is_flag=True, help="Those that are revoked, too.")
@click.pass_obj
def list_(options: Options, every: bool) -> None:
    """List the keys that were made, the oldest first; the home's own, local, is not among them.

    USED is the last use, to the minute.

    \b
    Examples:
      claudectl keys list
      claudectl keys list --json | jq -r '.keys[] | select(.role == "full") | .name'
    """
    _, document = options.client().get("keys?all=1" if every else "keys")
    options.show(document, _keys)


_HEADER = ("NAME", "ID", "STATE", "ROLE", "DOMAIN", "CREATED", "USED", "EXPIRES")


def _keys(document: Document, paint: Paint) -> str:
    rows = [_row(key) for key in documents(document.get("keys"))]
    return table(_HEADER, rows, paint, right=frozenset()) if rows else "no keys"


def _row(key: Document) -> list[str]:
    return [
        *(plain(key.get(fact)) for fact in ("name", "id", "state", "role", "domain")),
        *(moment.told(key.get(at)) for at in ("created_at", "used_at", "expires_at")),
    ]
