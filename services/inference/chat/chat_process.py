"""The chat process: ``python -m services.inference.chat.chat_process FD PARENT``, started only by `chat_client`.

It renders prompts and parses answers by llama.cpp, and decodes images by Pillow, one request at a time. A request on which one of them
crashes, loops or runs out of memory ends the process, and with it only the call that is in it. The process ends when its socket closes,
and the kernel kills it with its parent.
"""

import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import assert_never

import msgspec

from services.inference.chat import chat_messages
from services.inference.chat.chat_messages import ChatRefused, ChatReply, ChatRequest
from services.inference.chat.chat_template import ChatTemplate
from services.inference.chat.library import ChatLibrary, NotUnderstood
from services.inference.engine import engine_messages
from shared import confinement, landlock

#: In addition to what libraries have mapped: CUDA's alone take more.
_MEMORY_BYTES = 512 * 1024 * 1024
_STACK_BYTES = 8 * 1024 * 1024
#: Processor time of one request, and for each message more: templates take 0.15 ms.
_CPU_SECONDS, _MESSAGE_CPU_SECONDS = 2.0, 0.0004
_RECEIVE_BYTES = 256 * 1024


class ChatServer:
    """Answers requests about one template."""

    def __init__(self, library: ChatLibrary | None, unconfined: str) -> None:
        self._library = library
        self._unconfined = unconfined
        self._template: ChatTemplate | None = None

    def answer(self, request: ChatRequest) -> ChatReply:
        try:
            match request:
                case chat_messages.OpenTemplate():
                    self._template = ChatTemplate(self._library, request)
                    return msgspec.structs.replace(self._template.capabilities, unconfined=self._unconfined)
                case chat_messages.DecodeImage():
                    return _decoded(request)
                case chat_messages.RenderPrompt():
                    return self._opened().render(request)
                case chat_messages.ParseAnswer():
                    return self._opened().parse(request)
                case _:
                    assert_never(request)
        except (NotUnderstood, MemoryError) as error:
            return ChatRefused(str(error) or "no memory")

    def _opened(self) -> ChatTemplate:
        if self._template is None:
            raise NotUnderstood("no template is open")
        return self._template


def _decoded(request: chat_messages.DecodeImage) -> ChatReply:
    # Imported late: Pillow takes 8 MB, and most models see no images.
    from services.inference.images import image_decoding  # noqa: PLC0415

    try:
        return image_decoding.decode(request.data, request.long_side)
    except image_decoding.NotDecodable as error:
        return ChatRefused(str(error))


def main() -> None:
    confinement.die_with(int(sys.argv[2]))
    # The worker needs its children to drain. It ends this process by closing the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    # A stack that the parent allowed to grow further would only crash later.
    _limit(resource.RLIMIT_STACK, _STACK_BYTES)
    library = _library()
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    unconfined = "; ".join(filter(None, (landlock.restrict(()), confinement.confine(local_sockets=False))))
    server = ChatServer(library, unconfined)
    _limit(resource.RLIMIT_AS, mapped + _MEMORY_BYTES)
    try:
        _serve(connection, server)
    except (BrokenPipeError, ConnectionResetError):
        pass
    finally:
        # Not an ordinary exit: with llama.cpp's libraries loaded, destructors have aborted.
        os._exit(0)


def _library() -> ChatLibrary | None:
    """Without it, prompts are rendered by Jinja, and tools use the generic form."""
    try:
        return ChatLibrary()
    except (OSError, AttributeError):
        # There is none, or an older one.
        return None


def _serve(connection: socket.socket, server: ChatServer) -> None:
    unframer = engine_messages.Unframer()
    while received := connection.recv(_RECEIVE_BYTES):
        for body in unframer.feed(received):
            request = chat_messages.request_decoder.decode(body)
            messages = len(request.messages) if isinstance(request, chat_messages.RenderPrompt) else 0
            # Its signal ends the process, in C++ as well.
            signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS + _MESSAGE_CPU_SECONDS * messages)
            reply = msgspec.msgpack.encode(server.answer(request))
            if len(reply) > engine_messages.MAX_MESSAGE_BYTES:
                reply = msgspec.msgpack.encode(ChatRefused(f"the prompt has {len(reply)} bytes"))
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.sendall(engine_messages.framed(reply))


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    least = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (least, least))


if __name__ == "__main__":
    main()
