"""Command names, arguments, requests and data for programs are as recorded: scripts depend on them."""

from pathlib import Path

from tests.cli import command_lines


def test_command_lines_send_print_and_exit_as_recorded(tmp_path: Path) -> None:
    lines = command_lines.recorded_lines()
    assert len(lines) >= 100
    found = "\n".join(command_lines.run(lines, tmp_path)) + "\n"
    assert found == command_lines.RECORDING.read_text(encoding="utf-8"), "the docstring of command_lines.py says how to record it anew"
