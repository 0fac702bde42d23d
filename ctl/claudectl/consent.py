"""The question before what cannot be taken back."""

from __future__ import annotations

import sys

import click

from claudectl.errors import ControlError, Interrupted


def ask(question: str, *, otherwise: str) -> None:
    """Returns when a person at the terminal says yes, or there is none; ``otherwise`` tells what a no leaves.

    Raises ControlError for a no, Interrupted for Ctrl-C and the end of input.
    """
    if not sys.stdin.isatty():
        return
    try:
        sure = click.confirm(question, err=True)
    except click.Abort:
        raise Interrupted(f"interrupted: {otherwise}") from None
    if not sure:
        raise ControlError(otherwise)
