"""``python -m stack``: the same commands as ``aicli stack``."""

from stack import stack_commands

if __name__ == "__main__":
    stack_commands.stack(prog_name="aicli stack")
