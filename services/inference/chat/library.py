"""The binding of `libaimesh_chat` (aimesh_chat.cpp).

llama.cpp's parser recurses, so an answer can end the process with SIGSEGV. Only the chat process and tests load the library.
"""

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from services.inference.chat.chat_messages import (
    FittedModel,
    OpenTemplate,
    ParseAnswer,
    ParsedAnswer,
    RenderedPrompt,
    RenderPrompt,
    TemplateCapabilities,
)

#: Where stack/servers/engine_libraries.py builds it.
PATH = Path(sys.prefix) / "lib" / "libaimesh_chat.so"
#: It links against these libraries of the engine's wheel, in this order.
_ENGINE_LIBRARIES = ("libggml-base.so", "libggml-cpu.so", "libggml.so", "libllama.so")

_Reply = TypeVar("_Reply", TemplateCapabilities, RenderedPrompt, ParsedAnswer, FittedModel)


class NotUnderstood(Exception):
    """A template, messages or an answer were refused; the message is the reason."""


class ChatLibrary:
    """Not safe to use from several threads."""

    def __init__(self, path: Path = PATH) -> None:
        """Raises OSError if the library was not built."""
        package = importlib.util.find_spec("llama_cpp")
        if package is not None and package.origin is not None:
            # Loaded already, so that the loader needs no path. Not imported, because its Python takes longer to load than a template.
            for name in _ENGINE_LIBRARIES:
                ctypes.CDLL(str(Path(package.origin).parent / "lib" / name))
        self._native = ctypes.CDLL(str(path))
        for name in ("aimesh_chat_open", "aimesh_chat_apply", "aimesh_chat_parse", "aimesh_chat_fit"):
            # Not c_char_p, which ctypes copies and whose pointer it loses.
            getattr(self._native, name).restype = ctypes.c_void_p

    def open(self, request: OpenTemplate) -> "OpenedTemplate":
        """Raises NotUnderstood if llama.cpp can't read the template."""
        handle = ctypes.c_void_p()
        reply = self._call("aimesh_chat_open", request, ctypes.byref(handle))
        return OpenedTemplate(self, handle, self.read(reply, TemplateCapabilities))

    def parse(self, request: ParseAnswer) -> ParsedAnswer:
        """Raises NotUnderstood if the text isn't what the template's model should write."""
        return self.read(self._call("aimesh_chat_parse", request), ParsedAnswer)

    def render(self, handle: ctypes.c_void_p, request: RenderPrompt) -> RenderedPrompt:
        return self.read(self._call("aimesh_chat_apply", request, first=handle), RenderedPrompt)

    def close(self, handle: ctypes.c_void_p) -> None:
        self._native.aimesh_chat_close(handle)

    def fit(self, path: str, model: object, context: object, margin: int) -> FittedModel:
        """``model`` and ``context`` point to llama.cpp's parameters. Raises NotUnderstood if llama.cpp can't open the model."""
        return self.read(self._reply("aimesh_chat_fit", path.encode(), model, context, ctypes.c_size_t(margin)), FittedModel)

    def _call(self, name: str, request: msgspec.Struct, *last: object, first: ctypes.c_void_p | None = None) -> bytes:
        body = msgspec.json.encode(request)
        leading = () if first is None else (first,)
        return self._reply(name, *leading, body, ctypes.c_size_t(len(body)), *last)

    def _reply(self, name: str, *arguments: object) -> bytes:
        pointer = getattr(self._native, name)(*arguments)
        if not pointer:
            raise MemoryError(f"{name} has no memory for its reply")
        try:
            return ctypes.string_at(pointer)
        finally:
            self._native.aimesh_chat_free(ctypes.c_void_p(pointer))

    @staticmethod
    def read(reply: bytes, kind: type[_Reply]) -> _Reply:
        fields = msgspec.json.decode(reply, type=dict[str, msgspec.Raw])
        if "error" in fields:
            raise NotUnderstood(msgspec.json.decode(fields["error"], type=str))
        return msgspec.json.decode(fields["ok"], type=kind)


class OpenedTemplate:
    """An opened template; it must be closed before the library is."""

    def __init__(self, library: ChatLibrary, handle: ctypes.c_void_p, capabilities: TemplateCapabilities) -> None:
        self._library = library
        self._handle = handle
        self.capabilities = capabilities

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._library.close(self._handle)

    def render(self, request: RenderPrompt) -> RenderedPrompt:
        """Raises NotUnderstood if the template refuses the messages."""
        return self._library.render(self._handle, request)
