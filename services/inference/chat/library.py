"""The binding of `libaimesh_chat` (aimesh_chat.cpp).

llama.cpp's parser recurses, so an answer can end the process with SIGSEGV. Only the chat process and tests load the library.
"""

import ctypes
import importlib.util
from pathlib import Path
from typing import TypeVar

import msgspec

from services.inference import missing_libraries
from services.inference.chat import chat_messages

PATH = missing_libraries.path("libaimesh_chat")
#: It links against these libraries of the engine's wheel, in this order.
_ENGINE_LIBRARIES = ("libggml-base.so", "libggml.so", "libllama.so")

_Reply = TypeVar("_Reply")


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

    def open(self, request: chat_messages.OpenTemplate) -> "OpenedTemplate":
        """Raises NotUnderstood if llama.cpp can't read the template."""
        handle = ctypes.c_void_p()
        capabilities = self.ask(chat_messages.TemplateCapabilities, "aimesh_chat_open", *_encoded(request), ctypes.byref(handle))
        return OpenedTemplate(self, handle, capabilities)

    def parse(self, request: chat_messages.ParseAnswer) -> chat_messages.ParsedAnswer:
        """Raises NotUnderstood if the text isn't what the template's model should write."""
        return self.ask(chat_messages.ParsedAnswer, "aimesh_chat_parse", *_encoded(request))

    def fit(self, path: str, model: object, context: object, margin: int) -> chat_messages.FittedModel:
        """``model`` and ``context`` point to llama.cpp's parameters. Raises NotUnderstood if llama.cpp can't open the model."""
        return self.ask(chat_messages.FittedModel, "aimesh_chat_fit", path.encode(), model, context, ctypes.c_size_t(margin))

    def ask(self, kind: type[_Reply], name: str, *arguments: object) -> _Reply:
        """Call a function of the library and decode its reply. Raises NotUnderstood."""
        pointer = getattr(self._native, name)(*arguments)
        if not pointer:
            raise MemoryError(f"{name} has no memory for its reply")
        try:
            reply = ctypes.string_at(pointer)
        finally:
            self._native.aimesh_chat_free(ctypes.c_void_p(pointer))
        fields = msgspec.json.decode(reply, type=dict[str, msgspec.Raw])
        if "error" in fields:
            raise NotUnderstood(msgspec.json.decode(fields["error"], type=str))
        return msgspec.json.decode(fields["ok"], type=kind)


class OpenedTemplate:
    """A template that llama.cpp reads, until the process ends."""

    def __init__(self, library: ChatLibrary, handle: ctypes.c_void_p, capabilities: chat_messages.TemplateCapabilities) -> None:
        self._library = library
        self._handle = handle
        self.capabilities = capabilities

    def render(self, request: chat_messages.RenderPrompt) -> chat_messages.RenderedPrompt:
        """Raises NotUnderstood if the template refuses the messages."""
        return self._library.ask(chat_messages.RenderedPrompt, "aimesh_chat_apply", self._handle, *_encoded(request))


def _encoded(request: msgspec.Struct) -> tuple[bytes, ctypes.c_size_t]:
    body = msgspec.json.encode(request)
    return body, ctypes.c_size_t(len(body))
