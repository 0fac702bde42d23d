"""``claudectl metrics``."""

from __future__ import annotations

from collections.abc import Iterator

import click

from claudectl.options import Command, Options
from claudectl.render import Document, Paint, documents, mapping, plain

_PREFIX = "claude_daemon_"


@click.command(cls=Command, name="metrics")
@click.argument("name", required=False)
@click.pass_obj
def command(options: Options, name: str | None) -> None:
    """Show the numbers that Prometheus would read, those of NAME or of all that begin with it.

    NAME with or without its claude_daemon_. Over HTTP they are at /metrics, for a key with the scope metrics.

    \b
    Examples:
      claudectl metrics queue
      claudectl metrics process_
      claudectl metrics --json | jq '.metrics[].name'
    """
    _, document = options.client().get("metrics")
    found = [metric for metric in documents(document.get("metrics")) if _is_meant(plain(metric.get("name")), name)]
    options.show({"metrics": found}, _metrics)


def _is_meant(metric: str, name: str | None) -> bool:
    return name is None or metric.startswith((name, _PREFIX + name))


def _metrics(document: Document, paint: Paint) -> str:
    return "\n".join(_lines(document)) or "there is no such metric"


def _lines(document: Document) -> Iterator[str]:
    for metric in documents(document.get("metrics")):
        for sample in documents(metric.get("samples")):
            name, labels = plain(sample.get("name")), mapping(sample.get("labels"))
            told = ",".join(f'{plain(label)}="{plain(value)}"' for label, value in labels.items())
            yield f"{name}{'{' + told + '}' if told else ''} {_number(sample.get('value'))}"


def _number(value: object) -> str:
    """
    >>> [_number(value) for value in (3.0, 1795802000.25, 0.0001, None)]
    ['3', '1795802000.25', '0.0001', '+Inf']
    """
    return f"{value:.15g}" if isinstance(value, int | float) else "+Inf"
