"""The messages between a worker and its engine process, and their framing on the socketpair.

Each message is four bytes of length and a msgpack body. Both ends are ours; the limit catches mistakes early.
"""

import struct
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

import msgspec

from services.inference.engine.file_stamps import Stamps
from services.inference.engine.sampling import Parameters
from services.inference.images.prompt_images import DecodedImage
from shared import errors
from shared.api.embedding import EmbeddingInput
from shared.api.inference import TokenLogprob
from shared.types import FinishReason

#: An image has up to 8 MiB of pixels, and the images of a request up to 12 MiB.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

_LENGTH = struct.Struct(">I")


class KvMode(StrEnum):
    EXACT = "exact"
    SHARED = "shared"


class KvType(StrEnum):
    """The format of the KV cache: q8_0 halves the memory at the cost of a little quality, q4_0 quarters it at the cost of more."""

    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


class KvTypes(NamedTuple):
    keys: KvType
    #: None: the keys', or what the processor computes best.
    values: KvType | None = None

    def __str__(self) -> str:
        return self.keys if self.values in (None, self.keys) else f"keys {self.keys}, values {self.values}"


#: The numbers of a head that these types store together.
KV_BLOCKS = {KvType.Q8_0: 32, KvType.Q4_0: 32}
#: From this number of slots on, flash attention is worth its slow prompts on a processor (docs/decisions/0011).
FLASH_ATTENTION_SLOTS = 8


def reads_fast(mode: KvMode, types: KvTypes, slots: int) -> bool:
    """Whether a processor goes without flash attention, which is slow for pieces of less than 64 tokens: pieces of prompts beside answers
    are shorter."""
    is_f16 = types.keys is KvType.F16 and types.values in (None, KvType.F16)
    return mode is KvMode.SHARED and is_f16 and slots < FLASH_ATTENTION_SLOTS


class SplitMode(StrEnum):
    """How several GPUs share a model: by layers, by the rows of each tensor, or not at all."""

    LAYER = "layer"
    ROW = "row"
    NONE = "none"


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# --- worker to engine: LoadCommand first, then the others in any order ------------------------------------------------


class LoadedAdapter(msgspec.Struct, frozen=True, array_like=True):
    """A LoRA adapter's file, and the factor of its effect."""

    path: str
    scale: float


class LoadCommand(_Message, frozen=True):
    path: str
    slots: int
    #: Per slot; less if the model's limit is smaller.
    context_tokens: int
    threads: int
    gpu_layers: int
    kv_mode: KvMode = KvMode.EXACT
    kv_type: KvTypes = KvTypes(KvType.F16)
    #: Each GPU's share of the model; empty lets llama.cpp decide.
    tensor_split: tuple[float, ...] = ()
    device: int | None = None
    #: The first layers, whose experts stay on the processor.
    cpu_experts: int = 0
    #: Patterns of tensors with the device that holds them, as in ``blk\\.[0-9]\\.ffn=CPU``.
    override_tensor: tuple[str, ...] = ()
    split_mode: SplitMode | None = None
    #: Nobody has set how the model is divided, so llama.cpp's ``fit`` may do better than our estimate.
    may_fit: bool = False
    #: Whether answers may be drafted (`lookup`).
    speculates: bool = True
    #: Memory for prompts that lose their slots.
    prompt_cache_bytes: int = 0
    #: Numbered from 1; 0 is the model alone.
    adapters: tuple[LoadedAdapter, ...] = ()
    #: The file that makes embeddings of images; empty for none.
    projector: str = ""
    #: Load the model without it if it doesn't fit: nobody has named it.
    projector_is_optional: bool = False
    #: The longest text to embed; None for a slot's context.
    embedding_tokens: int | None = None
    #: The files as they were checked. The load fails if one has changed by its end.
    stamps: Stamps = ()


class ShowTokens(_Message, frozen=True):
    """Special tokens whose spellings belong to answers, such as the marks of tool calls. Sent before the first generation."""

    spellings: tuple[str, ...]


class ThoughtBudget(msgspec.Struct, frozen=True, array_like=True):
    """When the engine ends an answer's thoughts, by writing the tag that closes them."""

    #: After so many tokens; None for no limit.
    tokens: int | None
    #: What begins thoughts; empty if the prompt did.
    start: str
    #: The engine writes the first one.
    ends: tuple[str, ...]
    #: Something must follow them, such as a call: they also end where the model would end its answer.
    must_continue: bool = False


class PreparedPrompt(msgspec.Struct, frozen=True, array_like=True):
    #: With marks in callers' texts, and for images (`special_tokens`).
    text: str
    #: A grammar for the answer, in llguidance's Lark; empty for none.
    grammar: str = ""
    #: Regular expressions. The grammar applies from where one of them matches, or else from the beginning.
    triggers: tuple[str, ...] = ()
    #: What asked for the grammar.
    field: str = "format"
    budget: ThoughtBudget | None = None
    #: Whether the grammar is dropped if it doesn't compile: nobody forced a call.
    is_optional: bool = False


class StartGeneration(_Message, frozen=True):
    id: int
    prompt: PreparedPrompt
    parameters: Parameters
    #: Prompts with the same salt may share their KV cache; empty shares with none.
    salt: str = ""
    #: Tokens that another worker already delivered.
    delivered: tuple[int, ...] = ()
    #: Its number in LoadCommand.
    adapter: int = 0
    #: Live answers go first.
    is_batch: bool = False


class AddImage(_Message, frozen=True):
    """The next image of a StartGeneration that follows, or of a CancelGeneration."""

    id: int
    image: DecodedImage


class ConvertTokens(_Message, frozen=True):
    """Converts a prompt to token ids, or ids of TOKEN_BYTES each to text. Answered with ConversionResult or GenerationRefused."""

    id: int
    prompt: str = ""
    #: To convert to text; None for the prompt.
    token_ids: bytes | None = None
    #: Begin with the model's first token, as prompts do.
    add_special: bool = True


class CancelGeneration(_Message, frozen=True):
    """Cancels any of the others. The engine ignores unknown ids, which have just ended."""

    id: int
    #: Only this answer of a generation.
    answer: int | None = None


class EmbedTexts(_Message, frozen=True):
    """Answered with GenerationAccepted or GenerationRefused once all texts are tokenized, and then with vectors."""

    id: int
    inputs: tuple[EmbeddingInput, ...]
    dimensions: int | None = None
    #: Rank the inputs by it.
    query: str | None = None
    #: Live texts go first.
    is_batch: bool = False


#: With texts to tokenize.
TextCommand = StartGeneration | EmbedTexts | ConvertTokens
Command = LoadCommand | ShowTokens | AddImage | TextCommand | CancelGeneration


# --- engine to worker: Loading, then Loaded or LoadFailed, then the others --------------------------------------------


class Loading(_Message, frozen=True):
    progress: float


class Loaded(_Message, frozen=True):
    """The loaded model, for the log and the announcement."""

    description: str
    context_tokens: int
    #: The GPUs and their layers; empty without a GPU.
    gpu: str
    #: The model's own; empty if it has none.
    chat_template: str
    #: The processor features that this build of llama.cpp uses.
    processor: str
    #: Why the process isn't confined; empty if it is.
    unconfined: str = ""
    #: What was reduced for lack of memory, for people; empty if nothing was.
    lowered: str = ""
    bos: str = ""
    eos: str = ""
    #: The spellings of all special tokens.
    special: tuple[str, ...] = ()
    #: Those before a text with a gap, before what is behind the gap, and before what fills it; empty if the model has none.
    infill: tuple[str, ...] = ()
    #: It is bidirectional without a KV cache, so it can't generate text.
    only_embeds: bool = False
    #: For each adapter why it can't be used; empty if it can.
    adapter_problems: tuple[str, ...] = ()
    #: It has a projector for images.
    sees_images: bool = False
    #: See ``numerics.identify``.
    numerics: str = ""


class LoadFailed(_Message, frozen=True):
    reason: str


class GenerationAccepted(_Message, frozen=True):
    id: int
    prompt_tokens: int
    #: The text of the tokens that another worker delivered; None if there were none.
    delivered: str | None = None
    #: How long its images were encoded.
    image_seconds: float = 0.0


class GenerationRefused(_Message, frozen=True):
    id: int
    problem: errors.Problem


class ConversionResult(_Message, frozen=True):
    id: int
    #: Token ids, or a text in UTF-8; at most MAX_CONVERTED_BYTES.
    content: bytes


class AnswerProgress(_Message, frozen=True):
    id: int
    token_ids: tuple[int, ...]
    text: str
    finish: FinishReason | None = None
    answer: int = 0
    #: Cached tokens of the prompt; set with the first token of each answer.
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    #: Of a batch: how long the steps of this answer took so far.
    seconds: float = 0.0


class StepReport(_Message, frozen=True):
    """The result of one step; also sent without a token, to show that the engine lives."""

    progress: tuple[AnswerProgress, ...]
    #: Since the previous step, or since the engine was idle.
    seconds: float = 0.0
    #: The part of ``seconds`` spent in llama_decode.
    decode_seconds: float = 0.0
    answering: int = 0
    read: int = 0
    #: The prompt cache now, and its hits since the engine started.
    cache_bytes: int = 0
    cache_hits: int = 0
    #: Guessed tokens that were computed, and how many of them were right.
    drafted: int = 0
    accepted: int = 0
    #: All of its sequences are of batches.
    is_batch: bool = False
    #: Batch sequences that have lost their slots since the last report.
    preempted: int = 0


class ComputedVectors(_Message, frozen=True):
    """The next vectors of a request, in the order of its inputs."""

    id: int
    #: 32-bit floats, little-endian.
    vectors: tuple[bytes, ...]


class EmbeddingTurn(_Message, frozen=True):
    """The result of one batch of embeddings; also sent if no text has ended, to show that the engine lives."""

    vectors: tuple[ComputedVectors, ...]
    seconds: float = 0.0


class EncodingImages(_Message, frozen=True):
    """Shows that the engine lives while it encodes images and computes nothing else."""


Report = (
    Loading | Loaded | LoadFailed | EncodingImages | GenerationAccepted | GenerationRefused | ConversionResult | StepReport | EmbeddingTurn
)

_encoder = msgspec.msgpack.Encoder()
command_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def pack(message: Command | Report) -> bytes:
    return framed(_encoder.encode(message))


def framed(body: bytes) -> bytes:
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
