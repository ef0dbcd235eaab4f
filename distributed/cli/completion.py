"""``distributed-core completion``: the script that makes a shell complete commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]


@click.command("completion", short_help="Make a shell complete commands.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    """Print the completion script of SHELL.

    It completes commands, options and keys of the configuration, and for "call"
    and "describe" the operations of the server, and their arguments.

    \b
    Examples:
      eval "$(distributed-core completion bash)"       # in ~/.bashrc
      eval "$(distributed-core completion zsh)"        # in ~/.zshrc, after compinit
      distributed-core completion fish > ~/.config/fish/completions/distributed-core.fish
    """
    root = click.get_current_context().find_root()
    assert root.info_name is not None
    # The variable that click looks at, for a program of this name.
    variable = f"_{root.info_name}_COMPLETE".replace("-", "_").upper()
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root.command, {}, root.info_name, variable).source())
    return 0
