"""Command names, arguments, requests and data for programs are as recorded: scripts depend on them."""

from pathlib import Path

import pytest

from tests.cli import command_lines


@pytest.mark.parametrize("recording", command_lines.RECORDINGS, ids=lambda path: path.parents[1].name)
def test_command_lines_send_print_and_exit_as_recorded(recording: Path, tmp_path: Path) -> None:
    lines = command_lines.recorded_lines(recording)
    found = "\n".join(command_lines.run(lines, tmp_path)) + "\n"
    assert found == recording.read_text(encoding="utf-8"), "the docstring of command_lines.py says how to record it anew"


def test_most_commands_are_recorded() -> None:
    assert len(command_lines.recorded_lines()) >= 100
