"""The input line of `aicli chat`: multi-line editing, history and completion."""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings

from cli.ask import chat_commands
from shared.identity import private_file

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyPressEvent

MAX_ENTRIES = 1000
_IMAGE = "/image "
#: Longer texts are pasted, and nobody looks for them in the history.
_MAX_ENTRY_CHARACTERS = 16 * 1024
_MAX_BYTES = 16 * 1024 * 1024


class ChatHistory(History):
    """What the user typed, one JSON string per line. Several chats may append at once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def load_history_strings(self) -> Iterable[str]:
        """Return the latest first. Shorten the file if it became too long."""
        lines: list[bytes] = []
        with suppress(OSError), self._path.open("rb") as file:
            lines = file.read(_MAX_BYTES).splitlines()
        if len(lines) > 2 * MAX_ENTRIES:
            with suppress(OSError):
                private_file.replace(self._path, b"".join(line + b"\n" for line in lines[-MAX_ENTRIES:]))
        for line in reversed(lines[-MAX_ENTRIES:]):
            with suppress(ValueError):  # torn by a crash
                if isinstance(text := json.loads(line), str):
                    yield text

    def store_string(self, string: str) -> None:
        if len(string) > _MAX_ENTRY_CHARACTERS:
            return
        with suppress(OSError):  # the chat works without
            self._path.touch(mode=0o600)
            with self._path.open("ab") as file:
                file.write(json.dumps(string).encode() + b"\n")


class _ChatCompleter(Completer):
    def __init__(self, values: "Callable[[], Mapping[str, Iterable[str]]]") -> None:
        self._values = values
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text
        if text.startswith(_IMAGE):
            yield from self._paths.get_completions(Document(text.removeprefix(_IMAGE)), complete_event)
        start = text.rfind(" ") + 1
        for found in chat_commands.complete(text, self._values()):
            yield Completion(found, start_position=start - len(text))


class ChatInput:
    """``values`` returns the possible arguments of each command, for Tab."""

    def __init__(self, history: Path, values: "Callable[[], Mapping[str, Iterable[str]]]") -> None:
        self._session: PromptSession[str] = PromptSession(
            "> ",
            prompt_continuation="  ",
            multiline=True,
            key_bindings=_key_bindings(),
            history=ChatHistory(history),
            completer=_ChatCompleter(values),
            complete_while_typing=False,
            enable_open_in_editor=False,
        )

    async def read(self) -> str:
        """Raises KeyboardInterrupt for Ctrl-C, EOFError for Ctrl-D in an empty line."""
        # Signals stay with `cli.interrupts`; at the prompt, Ctrl-C is a key.
        return await self._session.prompt_async(handle_sigint=False)


def _key_bindings() -> KeyBindings:
    """Enter sends, although the input has several lines; Alt-Enter and Ctrl-J start a line."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: "KeyPressEvent") -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    @bindings.add("c-j")
    def start_line(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    return bindings
