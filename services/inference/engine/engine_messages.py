"""The messages between a worker and its engine process, and their framing on the socketpair.

Each message is four bytes of length and a msgpack body. Both ends are ours; the limit catches mistakes early.
"""

import struct
from collections.abc import Iterator
from enum import StrEnum

import msgspec

from services.inference.engine.kv_slots import KvMode
from services.inference.engine.sampling import Parameters
from services.inference.tool_calls.tool_format import ToolStyle
from shared import errors
from shared.api.embedding import EmbeddingInput
from shared.api.generation import ChatMessage, Tool, ToolCall
from shared.api.inference import TokenLogprob
from shared.types import FinishReason

MAX_MESSAGE_BYTES = 4 * 1024 * 1024

_LENGTH = struct.Struct(">I")


class KvType(StrEnum):
    """The format of the KV cache: q8_0 halves the memory at the cost of a little quality."""

    F16 = "f16"
    Q8_0 = "q8_0"


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# --- worker to engine: LoadCommand first, then the others in any order ------------------------------------------------


class LoadCommand(_Message, frozen=True):
    path: str
    slots: int
    #: Per slot; None for DEFAULT_CONTEXT_TOKENS, or the model's limit if that is smaller.
    context_tokens: int | None
    threads: int
    gpu_layers: int
    kv_mode: KvMode = KvMode.EXACT
    kv_type: KvType = KvType.F16
    #: Each GPU's share of the model; empty lets llama.cpp decide.
    tensor_split: tuple[float, ...] = ()
    device: int | None = None


class StartGeneration(_Message, frozen=True):
    id: int
    messages: tuple[ChatMessage, ...]
    parameters: Parameters
    #: Prompts with the same salt may share their KV cache; empty shares with none.
    salt: str = ""
    #: Tokens that another worker already delivered.
    delivered: tuple[int, ...] = ()
    #: A checked GBNF grammar for the answer; empty for none.
    grammar: str = ""
    tools: tuple[Tool, ...] = ()
    #: The request's id, the same on every worker; the ids of tool calls derive from it.
    request: str = ""
    #: The only message is a text to continue, not a chat.
    raw: bool = False


class CancelGeneration(_Message, frozen=True):
    """Cancels a StartGeneration or EmbedTexts. The engine ignores unknown ids, which have just ended."""

    id: int


class EmbedTexts(_Message, frozen=True):
    """Answered with GenerationAccepted or GenerationRefused once all texts are tokenized, and then with vectors."""

    id: int
    inputs: tuple[EmbeddingInput, ...]
    dimensions: int | None = None


Command = LoadCommand | StartGeneration | EmbedTexts | CancelGeneration


# --- engine to worker: Loading, then Loaded or LoadFailed, then the others --------------------------------------------


class Loading(_Message, frozen=True):
    progress: float


class Loaded(_Message, frozen=True):
    """The loaded model, for the log and the announcement."""

    description: str
    context_tokens: int
    #: The GPUs and their layers; empty without a GPU.
    gpu: str
    chat_template: bool
    #: The processor features that this build of llama.cpp uses.
    processor: str
    #: Why the process isn't confined; empty if it is.
    unconfined: str = ""
    #: What was reduced for lack of memory, for people; empty if nothing was.
    lowered: str = ""
    #: How the model writes tool calls; None without a chat template.
    tool_style: ToolStyle | None = None
    #: It is bidirectional without a KV cache, so it can't generate text.
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
    finish: FinishReason | None = None
    answer: int = 0
    #: Cached tokens of the prompt; set with the first token of each answer.
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


class StepReport(_Message, frozen=True):
    """The result of one step; also sent without a token, to show that the engine lives."""

    progress: tuple[AnswerProgress, ...]
    #: Since the previous step, or since the engine was idle.
    seconds: float = 0.0
    #: The part of ``seconds`` spent in llama_decode.
    decode_seconds: float = 0.0
    answering: int = 0
    read: int = 0


class ComputedVectors(_Message, frozen=True):
    """The next vectors of a request, in the order of its inputs."""

    id: int
    #: 32-bit floats, little-endian.
    vectors: tuple[bytes, ...]


class EmbeddingTurn(_Message, frozen=True):
    """The result of one batch of embeddings; also sent if no text has ended, to show that the engine lives."""

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
        """Yield the complete messages. Raises ProtocolViolation for one over the limit."""
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
