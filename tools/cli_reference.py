"""Generate the reference page of the command line from the commands."""

import inspect
from collections.abc import Iterator

import click

from cli import main
from cli.output.exit_codes import MEANINGS
from tools import generated


def render() -> str:
    """Return docs/reference/cli.md: every command with its arguments and options."""
    lines = ["# Command line", "", "Made from the commands by `tools.cli_reference`; edit those, not this page.", ""]
    root = click.Context(main.aicli, info_name="aicli")
    for context in _walk(root):
        lines += _section(context)
    codes = generated.table(("code", "meaning"), ((str(int(code)), meaning) for code, meaning in MEANINGS.items()))
    return "\n".join([*lines, "## Exit codes", "", codes]) + "\n"


def _walk(context: click.Context) -> Iterator[click.Context]:
    yield context
    group = context.command
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if command is not None and not command.hidden:
                yield from _walk(click.Context(command, info_name=name, parent=context))


def _section(context: click.Context) -> list[str]:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## {context.command_path}", "", "```", usage, "```", "", *_help(command), ""]
    # `params`, not `get_params`: the latter adds --help to each command.
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    rows = [record for option in options if (record := option.get_help_record(context)) is not None]
    if rows:
        cells = ((f"`{' '.join(option.split())}`", " ".join(meaning.split())) for option, meaning in rows)
        lines += [generated.table(("option", "meaning"), cells), ""]
    return lines


def _help(command: click.Command) -> list[str]:
    """Return the help text; paragraphs that click keeps unwrapped (\\b) become code blocks."""
    # Python 3.13 strips the indentation of docstrings itself; the page must not depend on that.
    blocks = inspect.cleandoc(command.help or "").split("\n\n")
    lines: list[str] = []
    for block in blocks:
        kept = block.strip("\n")
        if kept.lstrip().startswith("\b"):
            lines += ["```", *kept.lstrip().removeprefix("\b").strip("\n").splitlines(), "```", ""]
        else:
            lines += [kept, ""]
    return lines[:-1]
