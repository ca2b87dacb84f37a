"""``python -m cli.stack``: the same commands as ``aicli stack``."""

from cli.stack import commands

if __name__ == "__main__":
    commands.stack(prog_name="aicli stack")
