"""``claudectl backup``."""

from __future__ import annotations

from pathlib import Path

import click

from claudectl.errors import BadInput
from claudectl.options import Command, Options
from claudectl.render import Document, Paint, plain, size

# The daemon copies at the disk's speed: hundreds of gigabytes fit.
BACKUP_SECONDS = 3600.0


@click.command(cls=Command, name="backup")
@click.argument("file")
@click.pass_obj
def command(options: Options, file: str) -> None:
    """Copy the daemon's store, as it is now, to FILE.

    The daemon goes on meanwhile. It writes FILE itself, as its own user; one that is there already is a
    conflict, 7. `claude-daemon restore FILE` puts it back.

    \b
    Examples:
      claudectl backup tasks.db
      claudectl backup "/var/backups/claude-daemon-$(date +%F).db" --timeout 7200
    """
    body = {"path": _absolute(file)}
    options.show(options.client().post("backup", body, patience_seconds=BACKUP_SECONDS), _written)


def _absolute(file: str) -> str:
    """The daemon has a working directory of its own."""
    try:
        path = str(Path(file).absolute())
        path.encode()
    except UnicodeEncodeError:
        raise BadInput("the file's name is not UTF-8") from None
    except OSError as error:
        raise BadInput(f"the working directory is gone: {error.strerror}") from None
    return path


def _written(document: Document, _: Paint) -> str:
    return f"{plain(document.get('path'))} · {size(document.get('size_bytes'))}"
