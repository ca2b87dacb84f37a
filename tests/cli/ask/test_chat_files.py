"""Files of conversations: private, bounded, whole after kill -9, and two chats never overwrite each other."""

import os
import stat
import time
from pathlib import Path

import pytest

from cli.ask import chat_files
from cli.ask.chat_files import ChatFolder
from cli.ask.conversation import ChatConversation
from shared import errors

CHAT = ChatConversation().with_question("one").with_answer("1")


@pytest.fixture
def folder(tmp_path: Path) -> ChatFolder:
    made = ChatFolder(tmp_path / "state/chats")
    made.prepare()
    return made


def test_place_follows_the_xdg_specification() -> None:
    assert chat_files.folder_of_user({"XDG_STATE_HOME": "/state"}) == Path("/state/aimesh/chats")
    assert chat_files.folder_of_user({"XDG_STATE_HOME": "relative", "HOME": "/people/a"}) == Path("/people/a/.local/state/aimesh/chats")


def test_file_is_private_and_read_again(folder: ChatFolder) -> None:
    file = folder.new(CHAT)
    assert folder.names() == []
    assert file.write(CHAT) is None
    (path,) = folder.path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert folder.load(file.name).conversation == CHAT


def test_rename_keeps_one_file_and_refuses_a_taken_name(folder: ChatFolder) -> None:
    file = folder.new(CHAT)
    file.write(CHAT)
    file.rename("mine")
    file.rename("mine")
    assert folder.names() == ["mine"]
    other = folder.new(ChatConversation())
    with pytest.raises(errors.BadRequest, match="already a conversation 'mine'"):
        other.rename("mine")
    # A name that the user chose stays when the conversation gets another one.
    file.rename("copy")
    assert sorted(folder.names()) == ["copy", "mine"]


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "x" * 65, "a b", "ä"])
def test_name_cannot_leave_the_folder(folder: ChatFolder, name: str) -> None:
    with pytest.raises(errors.BadRequest, match="not a valid name"):
        folder.load(name)
    with pytest.raises(errors.BadRequest, match="not a valid name"):
        folder.new(CHAT).rename(name)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"turns": [{"question": 3}]}', b"\xff\xfe", b'{"settings": {"seed": -1}}'])
def test_damaged_file_is_named(folder: ChatFolder, body: bytes) -> None:
    (folder.path / "bad.json").write_bytes(body)
    with pytest.raises(errors.BadRequest, match=r"bad\.json is not a conversation"):
        folder.load("bad")
    with pytest.raises(errors.BadRequest, match="no conversation 'none'"):
        folder.load("none")


def test_two_chats_in_one_conversation_lose_nothing(folder: ChatFolder) -> None:
    folder.new(CHAT).rename("mine")
    first, second = folder.load("mine"), folder.load("mine")
    assert first.write(CHAT.with_question("first")) is None
    other = second.write(CHAT.with_question("second"))
    assert other is not None
    assert second.write(CHAT.with_question("third")) is None
    assert folder.load("mine").conversation == CHAT.with_question("first")
    assert folder.load(other).conversation == CHAT.with_question("third")


def test_deleted_file_is_not_brought_back(folder: ChatFolder) -> None:
    file = folder.new(CHAT)
    file.write(CHAT)
    (folder.path / f"{file.name}.json").unlink()
    assert file.write(CHAT) == file.name


def test_oldest_conversations_without_a_name_go(folder: ChatFolder) -> None:
    for number in range(chat_files.MAX_AUTOMATIC + 3):
        path = folder.path / f"20260101-000000-{number:04x}.json"
        path.write_text("{}")
        os.utime(path, (number, number))
    (folder.path / "mine.json").write_text("{}")
    os.utime(folder.path / "mine.json", (0, 0))
    folder.prepare()
    left = folder.names()
    assert len(left) == chat_files.MAX_AUTOMATIC + 1
    assert {"mine", "20260101-000000-0003"} <= set(left)
    assert "20260101-000000-0002" not in left


def test_interrupted_writes_go_and_running_ones_stay(folder: ChatFolder) -> None:
    old, new = folder.path / ".a.json.x1", folder.path / ".b.json.x2"
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 2 * chat_files._TEMPORARY_SECONDS,) * 2)
    folder.prepare()
    assert [path.name for path in folder.path.iterdir()] == [new.name]


def test_unusable_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.BadSettings, match=r"cannot use .*file/chats: Not a directory") as refused:
        ChatFolder(tmp_path / "file/chats").prepare()
    assert "XDG_STATE_HOME" in refused.value.hint


def test_full_disk_is_one_clear_error(folder: ChatFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shared.identity.private_file.replace", fail)
    with pytest.raises(errors.BadSettings, match=r"cannot save the conversation in .*: No space left on device"):
        folder.new(CHAT).write(CHAT)
