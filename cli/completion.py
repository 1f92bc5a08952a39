"""Completion scripts for shells."""

from __future__ import annotations

import click

from cli.base import Failure, command


@command(
    "completion",
    json=False,
    example="safekit completion bash > /etc/bash_completion.d/safekit\n"
    "safekit completion zsh > /usr/share/zsh/vendor-completions/_safekit\n"
    "safekit completion fish > /etc/fish/completions/safekit.fish",
    admin=False,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> int:
    """Print the completion script of a shell: words, options and names of modules."""
    from click.shell_completion import get_completion_class

    from cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise Failure(f"no completion for {shell}", "choose bash, zsh or fish")
    source = kind(cli, {}, "safekit", "_SAFEKIT_COMPLETE")
    click.echo(source.source_template % source.source_vars())
    return 0
