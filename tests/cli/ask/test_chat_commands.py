"""The commands of a chat: parsed, completed, and the nearest one for a misspelled one."""

import pytest

from cli.ask import chat_commands
from cli.ask.chat_commands import COMMANDS, ChatCommand
from shared import errors


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("hello", "hello"),
        ("a /model", "a /model"),
        ("//etc/hosts", "/etc/hosts"),
        ("/model", ChatCommand("model")),
        ("/model  smollm2 ", ChatCommand("model", "smollm2")),
        ("/system Be brief.\nAlways.", ChatCommand("system", "Be brief.\nAlways.")),
        ("/set temperature 0.5", ChatCommand("set", "temperature 0.5")),
        ("", ""),
        ("exit", ChatCommand("quit")),
        ("quit", ChatCommand("quit")),
        ("/bye", ChatCommand("quit")),
        ("/exit", ChatCommand("quit")),
        ("exit the loop, how?", "exit the loop, how?"),
    ],
)
def test_text_is_a_command_or_a_message(text: str, parsed: ChatCommand | str) -> None:
    assert chat_commands.parse(text) == parsed


@pytest.mark.parametrize("name", COMMANDS)
def test_misspelled_command_suggests_the_nearest_one(name: str) -> None:
    for typed in (name[:-1] + "x", name[1] + name[0] + name[2:], name.upper() + "s"):
        if typed not in COMMANDS:
            with pytest.raises(errors.BadRequest, match=f"no command /{typed}") as refused:
                chat_commands.parse(f"/{typed} x")
            assert "did you mean /" in refused.value.hint or typed[:2] == name[1] + name[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("/", "no command /", id="a slash"),
        pytest.param("/etc/hosts is what?", "no command /etc/hosts", id="a path"),
        pytest.param("/save", "/save needs NAME", id="a missing argument"),
        pytest.param("/retry now", "/retry takes nothing else", id="an argument too much"),
    ],
)
def test_wrong_command_says_what_to_do(text: str, message: str) -> None:
    with pytest.raises(errors.BadRequest, match=message):
        chat_commands.parse(text)


def test_path_says_how_to_send_it() -> None:
    with pytest.raises(errors.BadRequest, match="no command") as refused:
        chat_commands.parse("/usr/lib what is it?")
    assert "//" in refused.value.hint


def test_help_lists_every_command() -> None:
    text = "\n".join(chat_commands.help_lines())
    assert all(f"/{name} " in text for name in COMMANDS)


def test_completion() -> None:
    values = {"model": ["smollm2", "echo"]}
    assert chat_commands.complete("/sa", values) == ["/save"]
    assert chat_commands.complete("/model s", values) == ["smollm2"]
    assert chat_commands.complete("/model ", values) == ["smollm2", "echo"]
    assert chat_commands.complete("/help x", values) == []
    assert chat_commands.complete("model", values) == []
