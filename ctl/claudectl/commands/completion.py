"""``claudectl completion``."""

from __future__ import annotations

import click

from claudectl.options import Command, Options

SHELLS = ("bash", "zsh", "fish")
PROGRAM = "claudectl"


@click.command(cls=Command, name="completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_obj
def command(options: Options, shell: str) -> None:
    """Print what makes a shell complete commands, options and choices of claudectl.

    Needs no daemon. bash must be 4.4 or newer (that of macOS is not: install another, or use zsh).

    \b
    Examples:
      claudectl completion bash > ~/.local/share/bash-completion/completions/claudectl
      claudectl completion fish > ~/.config/fish/completions/claudectl.fish
      claudectl completion zsh > "${fpath[1]}/_claudectl"
    """
    script = _script(shell)
    if options.json:
        options.show_json({"shell": shell, "script": script})
    else:
        click.echo(script)


def _script(shell: str) -> str:
    from click.shell_completion import ShellComplete, get_completion_class

    from claudectl.main import cli

    completion = get_completion_class(shell)
    assert completion is not None
    made = completion(cli, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE")
    # not bash's own source(), which asks whatever bash is on the PATH how old it is
    return ShellComplete.source(made).strip()
