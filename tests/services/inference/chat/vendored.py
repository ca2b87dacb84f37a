"""The chat templates in llama.cpp's source, and its library, whose results are cached.

Rendering takes 30 ms, because llama.cpp derives the parser each time, and several test files render all 70 templates the same way.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from services.inference.chat.chat_messages import OpenTemplate
from services.inference.chat.library import ChatLibrary, OpenedTemplate
from tests import tiers
from tools import engine_libraries


class _RememberingLibrary(ChatLibrary):
    def __init__(self) -> None:
        super().__init__()
        self._opened: dict[bytes, OpenedTemplate] = {}
        self._rendered: dict[tuple[int | None, bytes], Any] = {}

    def open(self, request: OpenTemplate) -> OpenedTemplate:
        key = msgspec.json.encode(request)
        if key not in self._opened:
            self._opened[key] = super().open(request)
        return self._opened[key]

    def ask(self, kind: type[Any], name: str, *arguments: Any) -> Any:
        if name != "aimesh_chat_apply":
            return super().ask(kind, name, *arguments)
        handle: ctypes.c_void_p = arguments[0]
        key = (handle.value, arguments[1])
        if key not in self._rendered:
            self._rendered[key] = super().ask(kind, name, *arguments)
        return self._rendered[key]


@cache
def library() -> ChatLibrary:
    return _RememberingLibrary()


def paths() -> list[Path]:
    return sorted(engine_libraries.templates_folder().glob("*.jinja"))


def sample() -> list[Path]:
    """Return all templates with ``--nightly``, and every third in `make test`."""
    return paths() if tiers.is_nightly() else paths()[::3]


@cache
def request_of(path: Path) -> OpenTemplate:
    return OpenTemplate(path.read_text(encoding="utf-8"), "<s>", "</s>")
