"""`aicli completion`: print a shell completion script."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: eval "$(aicli completion bash)"      in ~/.bashrc
    zsh:  eval "$(aicli completion zsh)"       in ~/.zshrc
    fish: aicli completion fish | source       in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "aicli", "_AICLI_COMPLETE").source())
