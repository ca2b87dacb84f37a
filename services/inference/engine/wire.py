"""What a worker and its engine process say to each other, and how it is framed on their socketpair.

Each message is four bytes of length and a msgpack body. Both ends are ours, the limit only catches mistakes early.
"""

import struct
from collections.abc import Iterator

import msgspec

from services.inference.engine.sampling import Parameters
from shared import errors
from shared.api.generation import ChatMessage
from shared.types import FinishReason

#: A prompt is at most 1 MiB on the mesh; a step's text is far smaller.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

_LENGTH = struct.Struct(">I")


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# --- worker to engine: Load first, then the others in any order ------------------------------------------------------


class Load(_Message, frozen=True):
    path: str
    slots: int
    #: Per slot; None means DEFAULT_CONTEXT_TOKENS, or the model's own when that is less.
    context_tokens: int | None
    threads: int
    #: -1 is llama.cpp's word for all of them.
    gpu_layers: int


class Generate(_Message, frozen=True):
    id: int
    messages: tuple[ChatMessage, ...]
    parameters: Parameters


class Cancel(_Message, frozen=True):
    """Also sent for generations that have just ended; the engine ignores ids it does not know."""

    id: int


Command = Load | Generate | Cancel


# --- engine to worker: Loaded or LoadFailed first, then the others ----------------------------------------------------


class Loaded(_Message, frozen=True):
    """What was found; the worker logs it and offers it to the mesh."""

    description: str
    context_tokens: int
    #: Layers on a GPU, and which; empty without one.
    gpu: str
    chat_template: bool
    #: What this build of llama.cpp uses of the processor.
    processor: str


class LoadFailed(_Message, frozen=True):
    reason: str


class Accepted(_Message, frozen=True):
    id: int
    prompt_tokens: int


class Refused(_Message, frozen=True):
    id: int
    problem: errors.Problem


class Progress(_Message, frozen=True):
    id: int
    token_ids: tuple[int, ...]
    text: str
    #: None while the generation goes on.
    finish: FinishReason | None = None


class Step(_Message, frozen=True):
    """All sequences' new tokens of one step."""

    progress: tuple[Progress, ...]


Report = Loaded | LoadFailed | Accepted | Refused | Step

_encoder = msgspec.msgpack.Encoder()
command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def pack(message: Command | Report) -> bytes:
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class Unframer:
    """Bytes in, whole message bodies out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The messages that are complete now; raises ProtocolViolation for one over the limit."""
        self._buffer += received
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_MESSAGE_BYTES:
                raise errors.ProtocolViolation(f"a message of {length} bytes on the engine's socket; the limit is {MAX_MESSAGE_BYTES}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield body
