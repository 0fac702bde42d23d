"""``claudectl debug-bundle``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from claudectl.options import Command, Options
from claudectl.progress import Progress
from claudectl.render import Document, Paint, documents, plain, size


@click.command(cls=Command, name="debug-bundle")
@click.argument("file", required=False)
@click.option("--config", metavar="FILE", help="The configuration that is meant, as for claude-daemon run.")
@click.option("--profile", type=click.Choice(["dev", "staging", "prod"]), help="And its profile.")
@click.pass_obj
def command(options: Options, file: str | None, config: str | None, profile: str | None) -> None:
    """Pack what a report of trouble should come with into FILE, a .tar.gz that only you may read.

    Status, health, workers, stacks, what doctor finds, the effective configuration, versions, the end of the log; with
    secrets taken out, and without prompts and answers. It works as far as it can when the daemon is down. A FILE that
    is there already is a conflict, 7.

    \b
    Examples:
      claudectl debug-bundle
      claudectl debug-bundle /tmp/trouble.tar.gz && tar tzf /tmp/trouble.tar.gz
    """
    from claudectl.bundle import Bundle, made

    path = Path(file or time.strftime("claude-daemon-debug-%Y%m%d-%H%M%S.tar.gz"))
    bundle = Bundle(options, config=config, profile=profile)
    doing = ["beginning"]
    with made(path) as opened:
        with Progress(lambda elapsed: f"gathering {doing[0]} … {elapsed:.0f} s", wanted=not options.json):
            bundle.gather(lambda what: doing.__setitem__(0, what))
        written = bundle.archive()
        opened.write(written)
    document = {
        "path": str(path),
        "size_bytes": len(written),
        "parts": list(bundle.parts),
        "missing": [{"part": part, "reason": reason} for part, reason in bundle.missing.items()],
    }
    options.show(document, _written)


def _written(document: Document, _: Paint) -> str:
    parts = ", ".join(map(plain, document["parts"]))
    lines = [f"{plain(document['path'])} · {size(document['size_bytes'])} · {parts}"]
    lines += [f"  without {plain(one['part'])}: {plain(one['reason'])}" for one in documents(document["missing"])]
    return "\n".join(lines)
