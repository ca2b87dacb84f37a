"""The commands of `aicli chat`: parses what the user typed, and completes it. Pure."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shared import errors


@dataclass(frozen=True, slots=True)
class ChatCommand:
    name: str
    argument: str = ""


@dataclass(frozen=True, slots=True)
class _CommandHelp:
    argument: str
    text: str
    is_argument_needed: bool = False


COMMANDS = {
    "model": _CommandHelp("[NAME]", "choose the model; without NAME, list the models"),
    "system": _CommandHelp("[TEXT]", "set the system prompt, - removes it; without TEXT, show it"),
    "set": _CommandHelp("[NAME VALUE]", "set a parameter such as temperature, - means default; alone, show all"),
    "image": _CommandHelp("[FILE]", "show an image with the next message, - removes them; without FILE, list them"),
    "retry": _CommandHelp("", "answer the last message again"),
    "new": _CommandHelp("", "start a new conversation with the same settings"),
    "save": _CommandHelp("NAME", "keep this conversation under a name", is_argument_needed=True),
    "load": _CommandHelp("[NAME]", "continue another conversation; without NAME, list them"),
    "copy": _CommandHelp("", "copy the last answer to the clipboard"),
    "help": _CommandHelp("", "show this help"),
    "quit": _CommandHelp("", "leave"),
}
#: What leaves other programs; shells, Ollama and REPLs.
_QUIT = frozenset({"exit", "quit", "/exit", "/bye"})
KEYS = {
    "Alt-Enter, Ctrl-J": "new line",
    "Up, Down, Ctrl-R": "earlier messages",
    "Ctrl-C": "stop the answer, or clear the line",
    "Ctrl-D, exit, quit": "leave",
    "//text": "send text that starts with /",
}


def parse(text: str) -> ChatCommand | str:
    """Return a command, or the message to send. Raises BadRequest for an unknown or incomplete command."""
    if text in _QUIT:
        return ChatCommand("quit")
    if not text.startswith("/") or text.startswith("//"):
        return text.removeprefix("/") if text.startswith("//") else text
    name, _, argument = text[1:].partition(" ")
    name, argument = name.strip(), argument.strip()
    if (found := COMMANDS.get(name)) is None:
        nearest = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
        hint = f"did you mean /{nearest[0]}?" if nearest else "/help lists the commands; // sends text that starts with /"
        raise errors.BadRequest(f"there is no command /{name}", hint=hint)
    if found.is_argument_needed and not argument:
        raise errors.BadRequest(f"/{name} needs {found.argument}")
    if argument and not found.argument:
        raise errors.BadRequest(f"/{name} takes nothing else", hint=f"type only /{name}")
    return ChatCommand(name, argument)


def help_lines() -> list[str]:
    rows = {f"/{name} {command.argument}": command.text for name, command in COMMANDS.items()} | KEYS
    width = max(map(len, rows))
    return [f"{title.ljust(width)}  {text}" for title, text in rows.items()]


def complete(text: str, values: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the possible last words of ``text``. ``values`` are those of each command's argument."""
    if not text.startswith("/"):
        return []
    name, space, argument = text[1:].partition(" ")
    if not space:
        return [f"/{command}" for command in COMMANDS if command.startswith(name)]
    return [value for value in values.get(name, ()) if value.startswith(argument)]
