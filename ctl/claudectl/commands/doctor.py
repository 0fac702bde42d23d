"""``claudectl doctor``."""

from __future__ import annotations

import click

from claudectl.errors import Exit
from claudectl.findings import line, summed_up
from claudectl.options import Command, Options
from claudectl.progress import Progress
from claudectl.render import Document, Paint


@click.command(cls=Command, name="doctor")
@click.option("--config", metavar="FILE", help="Look at this configuration, as claude-daemon run --config takes it.")
@click.option("--profile", type=click.Choice(["dev", "staging", "prod"]), help="And at this profile.")
@click.pass_obj
def command(options: Options, config: str | None, profile: str | None) -> None:
    """Look at everything the daemon stands on, and say what to do; it need not run.

    The installation, the configuration, Claude Code, the credential, the sandbox, permissions of the home and its keys,
    ports, sockets, units, roots, disks. Nothing is changed. Ends with 1 when something fails, else with 0.

    \b
    Examples:
      claudectl doctor
      claudectl doctor --profile prod --config /etc/claude-daemon/config.toml
      claudectl doctor --json | jq '.findings[] | select(.status != "pass")'
    """
    from claudectl.diagnosis import approached, examine

    with Progress(lambda elapsed: f"looking … {elapsed:.0f} s", wanted=not options.json):
        found = list(examine(approached(options), config=config, profile=profile))
    fails = any(one.get("status") == "fail" for one in found)
    options.show({"status": _worst(found), "findings": found}, lambda _, paint: _text(found, paint))
    click.get_current_context().exit(Exit.FAILED if fails else Exit.DONE)


def _worst(found: list[Document]) -> str:
    statuses = {one.get("status") for one in found}
    return next((status for status in ("fail", "warn") if status in statuses), "pass")


def _text(found: list[Document], paint: Paint) -> str:
    return "\n".join([*(line(one, paint) for one in found), "", summed_up(found)])
