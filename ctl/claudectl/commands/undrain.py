"""``claudectl undrain``."""

from __future__ import annotations

import click

from claudectl import render
from claudectl.options import Command, Options


@click.command(cls=Command, name="undrain")
@click.pass_obj
def command(options: Options) -> None:
    """Take work again after a drain.

    A drain that a signal began cannot be undone: that is a conflict, 7.

    \b
    Example:
      claudectl undrain
    """
    document = options.client().post("undrain", {})
    options.show(document, render.state)
