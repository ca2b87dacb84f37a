"""The reference page documents every command."""

from cli import main
from tools import cli_reference


def test_every_command_is_on_the_page() -> None:
    page = cli_reference.render()
    for name in (name for section in main.SECTIONS.values() for name in section):
        assert f"\n## aicli {name}\n" in page
    assert "\n## aicli keys create\n" in page
    assert "\n## aicli admin users set-tier\n" in page
    assert "\n## aicli stack up\n" in page


def test_page_has_arguments_options_and_exit_codes() -> None:
    page = cli_reference.render()
    assert "aicli keys create [OPTIONS] NAME" in page
    assert "| `--max-tokens INTEGER RANGE" in page
    assert "| 130 | interrupted" in page
    assert "\b" not in page
    assert "\n    " not in page
    assert "--help" not in page


def test_page_is_deterministic() -> None:
    assert cli_reference.render() == cli_reference.render()
