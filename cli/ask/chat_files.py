"""The conversations of `aicli chat` on this machine, each in a file that only its owner can read."""

import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cli import user_folders
from cli.ask.conversation import MAX_IMAGE_BYTES, ChatConversation
from shared import errors
from shared.api.generation import MAX_PROMPT_BYTES
from shared.identity import private_file

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: Conversations without a name of the user's.
_AUTOMATIC = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
MAX_AUTOMATIC = 100
#: JSON takes up to six bytes for one of ours, and four for three of an image.
_MAX_BYTES = 6 * MAX_PROMPT_BYTES + 2 * MAX_IMAGE_BYTES
#: Of a write that kill -9 interrupted.
_TEMPORARY_SECONDS = 3600


def folder_of_user(environment: Mapping[str, str]) -> Path:
    """Return $XDG_STATE_HOME/aimesh/chats."""
    return user_folders.state(environment) / "chats"


class ChatFolder:
    """All methods raise BadSettings if the folder cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """Create the folder. Delete the oldest conversations without a name, and what interrupted writes left."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            automatic = [name for name in self.names() if _AUTOMATIC.fullmatch(name)]
            for name in automatic[MAX_AUTOMATIC:]:
                self._file(name).unlink(missing_ok=True)
            for path in self.path.glob(".*.json.*"):
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < time.time() - _TEMPORARY_SECONDS:
                        path.unlink()
        except OSError as error:
            raise errors.BadSettings(f"cannot use {self.path}: {error.strerror}", hint="set XDG_STATE_HOME to another folder") from error

    def names(self) -> list[str]:
        """Return all names, the latest first."""
        found: list[tuple[float, str]] = []
        for path in self.path.glob("*.json"):
            with suppress(FileNotFoundError):
                found.append((path.stat().st_mtime, path.stem))
        return [name for _, name in sorted(found, reverse=True)]

    def load(self, name: str) -> "ChatFile":
        """Raises BadRequest if there is no such conversation, or it is damaged."""
        path = self._file(name)
        try:
            stamp = _stamp(path)
            with path.open("rb") as file:
                return ChatFile(self, name, msgspec.json.decode(file.read(_MAX_BYTES), type=ChatConversation), stamp)
        except FileNotFoundError:
            raise errors.BadRequest(f"there is no conversation {name!r}", hint="/load lists them") from None
        except OSError as error:
            raise errors.BadSettings(f"cannot read {path}: {error.strerror}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise errors.BadRequest(f"{path} is not a conversation: {error}") from error

    def new(self, conversation: ChatConversation) -> "ChatFile":
        name = f"{datetime.now(UTC).astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        return ChatFile(self, name, conversation, None)

    def _file(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise errors.BadRequest(f"{name!r} is not a valid name", hint="use letters, digits, . _ and -")
        return self.path / f"{name}.json"


class ChatFile:
    """One conversation and its file, which is written with the first turn."""

    def __init__(self, folder: ChatFolder, name: str, conversation: ChatConversation, stamp: tuple[int, int] | None) -> None:
        self.folder = folder
        self.name = name
        self.conversation = conversation
        #: Of the file as this process knows it; None before it exists.
        self._stamp = stamp

    def write(self, conversation: ChatConversation) -> str | None:
        """Replace the file. If another chat changed it meanwhile, write a new file and return its name."""
        self.conversation = conversation
        path = self.folder._file(self.name)
        other = None
        if _stamp(path) != self._stamp:
            other = self.folder.new(conversation).name
            self.name, path = other, self.folder._file(other)
        try:
            private_file.replace(path, msgspec.json.format(msgspec.json.encode(conversation)), synced=True)
        except OSError as error:
            raise errors.BadSettings(f"cannot save the conversation in {path}: {error.strerror}") from error
        self._stamp = _stamp(path)
        return other

    def rename(self, name: str) -> None:
        """Raises BadRequest if the name is taken."""
        old, new = self.folder._file(self.name), self.folder._file(name)
        if name == self.name:
            return
        if new.exists():
            raise errors.BadRequest(f"there is already a conversation {name!r}", hint="choose another name")
        self.name, self._stamp = name, None
        self.write(self.conversation)
        if _AUTOMATIC.fullmatch(old.stem):
            old.unlink(missing_ok=True)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_ino
