"""What a worker and its engine process say to each other, and how it is framed on their socketpair.

Each message is four bytes of length and a msgpack body. Both ends are ours, the limit only catches mistakes early.
"""

import struct
from collections.abc import Iterator
from enum import StrEnum

import msgspec

from services.inference.engine.kv_slots import KvMode
from services.inference.engine.sampling import Parameters
from services.inference.tool_calls.tool_format import ToolStyle
from shared import errors
from shared.api.generation import ChatMessage, Tool, ToolCall
from shared.api.inference import TokenLogprob
from shared.types import FinishReason

#: A prompt is at most 1 MiB on the mesh; a step's text is far smaller.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

_LENGTH = struct.Struct(">I")


class KvType(StrEnum):
    """How a number of the model's memory is kept: half the bytes of f16 cost a little quality."""

    F16 = "f16"
    Q8_0 = "q8_0"


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# --- worker to engine: Load first, then the others in any order ------------------------------------------------------


class LoadCommand(_Message, frozen=True):
    path: str
    slots: int
    #: Per slot; None means DEFAULT_CONTEXT_TOKENS, or the model's own when that is less.
    context_tokens: int | None
    threads: int
    #: -1 is llama.cpp's word for all of them.
    gpu_layers: int
    kv_mode: KvMode = KvMode.EXACT
    kv_type: KvType = KvType.F16
    #: How much of the model each GPU gets; empty leaves it to llama.cpp.
    tensor_split: tuple[float, ...] = ()
    #: The number of the only GPU to use; None: all of them.
    device: int | None = None


class StartGeneration(_Message, frozen=True):
    id: int
    messages: tuple[ChatMessage, ...]
    parameters: Parameters
    #: Whose prompts may share what is computed of them; empty shares with nobody.
    salt: str = ""
    #: Of an answer that another worker began.
    delivered: tuple[int, ...] = ()
    #: GBNF that the answer must follow; empty for none. It has been checked.
    grammar: str = ""
    tools: tuple[Tool, ...] = ()
    #: Of the whole request, wherever it runs: what its calls of tools are numbered by.
    request: str = ""
    #: The only message is a text to go on with, and no chat.
    raw: bool = False


class CancelGeneration(_Message, frozen=True):
    """Of a Generate or an Embed. Also sent for those that have just ended; the engine ignores ids it does not know."""

    id: int


class EmbedTexts(_Message, frozen=True):
    """Answered with Accepted or Refused when all texts are counted, and then with their vectors, turn by turn."""

    id: int
    inputs: tuple[str, ...]
    #: Of each vector; None for all that the model gives.
    dimensions: int | None = None


Command = LoadCommand | StartGeneration | EmbedTexts | CancelGeneration


# --- engine to worker: Loaded or LoadFailed first, then the others ----------------------------------------------------


class Loading(_Message, frozen=True):
    #: From 0 to 1.
    progress: float


class Loaded(_Message, frozen=True):
    """What was found; the worker logs it and offers it to the mesh."""

    description: str
    context_tokens: int
    #: Layers on a GPU, and which; empty without one.
    gpu: str
    chat_template: bool
    #: What this build of llama.cpp uses of the processor.
    processor: str
    #: Why the process can reach more of the system than it needs; empty where it cannot.
    unconfined: str = ""
    #: What there was less memory for than was asked for, for people; empty where there was enough.
    lowered: str = ""
    #: How the model writes calls of tools; None where its template has no place for them.
    tool_style: ToolStyle | None = None
    #: It reads both ways and remembers nothing, so it gives vectors and no answers.
    only_embeds: bool = False


class LoadFailed(_Message, frozen=True):
    reason: str


class GenerationAccepted(_Message, frozen=True):
    id: int
    prompt_tokens: int


class GenerationRefused(_Message, frozen=True):
    id: int
    problem: errors.Problem


class AnswerProgress(_Message, frozen=True):
    id: int
    token_ids: tuple[int, ...]
    text: str
    #: None while this answer goes on.
    finish: FinishReason | None = None
    #: Which of several.
    answer: int = 0
    #: Of the prompt; told with the first token of each answer.
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


class StepReport(_Message, frozen=True):
    """What one step gave; also sent when no sequence has a token, so that a worker sees that its engine lives."""

    progress: tuple[AnswerProgress, ...]
    #: Since the step before, or since there was something to do again; and what llama.cpp took of it.
    seconds: float = 0.0
    decode_seconds: float = 0.0
    #: Sequences that got a token, and tokens that were read.
    answering: int = 0
    read: int = 0


class ComputedVectors(_Message, frozen=True):
    """The next ones of a request, in the order of its inputs."""

    id: int
    #: Of 32-bit floats, lowest byte first.
    vectors: tuple[bytes, ...]


class EmbeddingTurn(_Message, frozen=True):
    """What one batch of embeddings gave; also sent when no text has ended, so that a worker sees that its engine lives."""

    vectors: tuple[ComputedVectors, ...]
    seconds: float = 0.0
    tokens: int = 0


Report = Loading | Loaded | LoadFailed | GenerationAccepted | GenerationRefused | StepReport | EmbeddingTurn

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
