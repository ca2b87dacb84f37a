"""What a model file says of itself, and whether llama.cpp may see it: the check before a GGUF file is mapped.

It runs in the engine's process. llama.cpp ends its process over some values instead of refusing the file (a vocabulary
with a word twice, 0 layers, more experts in use than there are); those are refused here, each with the sentence that
llama.cpp does not say. What passes can still be refused by llama.cpp: a missing tensor, a wrong shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO, Literal

from services.inference.engine.gguf import gguf_container
from services.inference.engine.gguf.gguf_container import NotAModel, Value, ValueKind

__all__ = ["CacheType", "GgufHeader", "NotAModel", "PoolingKind", "kv_bytes_per_token", "read_header"]

#: The limits of llama.cpp's tables (LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS); beyond them it aborts.
MAX_LAYERS = 512
MAX_EXPERTS = 1024
#: Larger than any model; what is computed from them stays a number that makes sense.
MAX_CONTEXT_TOKENS = 1 << 30
MAX_WIDTH = 1 << 24

#: What llama.cpp can keep keys and values of the attention in.
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

_TOKENS = "tokenizer.ggml.tokens"
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_EMBEDDING_ARCHITECTURES = frozenset(
    {
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llama-embed",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "t5encoder",
    }
)
#: These read all of a text at once, and llama.cpp keeps nothing of it.
_WITHOUT_CACHE = (_EMBEDDING_ARCHITECTURES - {"llama-embed"}) | {"dream", "llada", "llada-moe", "rnd1"}
#: They may carry an expert that is none, and llama.cpp makes an exception for them.
_SINGLE_EXPERT_ALLOWED = frozenset({"hunyuan-dense", "hunyuan_vl"})


class PoolingKind(IntEnum):
    """How the vectors of a text's tokens become one; llama.cpp's numbers."""

    NONE = 0
    MEAN = 1
    CLS = 2
    LAST = 3
    #: A score for a pair of texts and no vector: a reranker.
    RANK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """None and () mean that the file does not say."""

    version: int
    #: None only in the later parts of a split model.
    architecture: str | None
    name: str | None
    #: llama.cpp's number of the quantisation, LLAMA_FTYPE.
    file_type: int | None
    context_length: int | None
    block_count: int | None
    embedding_length: int | None
    #: One for each block.
    head_counts: tuple[int, ...]
    #: Fewer than heads where several share keys and values; 0 in a block without attention.
    kv_head_counts: tuple[int, ...]
    #: Elements of one head's key and value.
    key_length: int | None
    value_length: int | None
    vocabulary_size: int | None
    pooling_type: PoolingKind | None
    has_chat_template: bool
    tensor_count: int
    #: All elements of all tensors in this file.
    parameter_count: int
    tensor_bytes: int
    #: 1 for a model in one file.
    split_count: int
    #: From 0.
    split_number: int

    @property
    def is_embedding_model(self) -> bool:
        """Made to turn texts into vectors (or, with Pooling.RANK, into scores), not to go on with them."""
        return self.architecture in _EMBEDDING_ARCHITECTURES or self.pooling_type not in (None, PoolingKind.NONE)


def read_header(file: BinaryIO, size: int) -> GgufHeader:
    """Check the header of a file of ``size`` bytes and say what is in it; raises NotAModel. Reads no tensor."""
    container = gguf_container.read(file, size, distinct=_TOKENS)
    facts = _Facts(container.values)
    split_count, split_number = _split(facts)
    if facts.architecture is None and split_number == 0:
        raise NotAModel("it does not name the architecture of a model (general.architecture)")
    _refuse_experts(facts)
    _refuse_rope_scaling(facts)
    blocks = _blocks(facts)
    embedding_length = facts.number("embedding_length", most=MAX_WIDTH)
    heads = facts.per_block("attention.head_count", blocks)
    head_length = embedding_length // heads[0] if embedding_length and heads and heads[0] else None
    return GgufHeader(
        version=container.version,
        architecture=facts.architecture,
        name=facts.text("general.name"),
        file_type=facts.number("general.file_type"),
        context_length=facts.number("context_length", least=1, most=MAX_CONTEXT_TOKENS),
        block_count=blocks,
        embedding_length=embedding_length,
        head_counts=heads,
        kv_head_counts=facts.per_block("attention.head_count_kv", blocks) or heads,
        key_length=facts.number("attention.key_length", most=MAX_WIDTH) or head_length,
        value_length=facts.number("attention.value_length", most=MAX_WIDTH) or head_length,
        vocabulary_size=facts.array_length(_TOKENS, ValueKind.STRING),
        pooling_type=_pooling(facts),
        has_chat_template=facts.has_text("tokenizer.chat_template"),
        tensor_count=container.tensors.count,
        parameter_count=container.tensors.elements,
        tensor_bytes=container.tensors.bytes,
        split_count=split_count,
        split_number=split_number,
    )


def kv_bytes_per_token(header: GgufHeader, type_k: CacheType = "f16", type_v: CacheType = "f16") -> int | None:
    """What one token of context costs; None where the header does not say.

    At most: a model whose layers look back through a window, share their keys or compress them, needs less. The fixed
    state of a recurrent model does not grow with its tokens and is not counted, so None for a model that has only that.
    """
    if header.architecture in _WITHOUT_CACHE:
        return 0
    if header.key_length is None or header.value_length is None or not any(header.kv_head_counts):
        return None
    stored = {stored.name: stored for stored in gguf_container.TENSOR_TYPES.values()}
    return sum(
        stored[type_k].bytes_of(heads * header.key_length) + stored[type_v].bytes_of(heads * header.value_length)
        for heads in header.kv_head_counts
    )


class _Facts:
    """The pairs, by their meaning. A key without a section of its own (`context_length`) is the architecture's."""

    def __init__(self, values: dict[str, Value]) -> None:
        self._values = values
        self.architecture = self.text("general.architecture")

    def text(self, key: str) -> str | None:
        found = self._find(key)
        if found is None:
            return None
        name, value = found
        if value.kind is not ValueKind.STRING or value.count is not None or value.raw is None:
            raise NotAModel(f"{name} is no text, or a text of more than {gguf_container.MAX_KEPT_TEXT_BYTES} bytes")
        try:
            return value.raw.decode()
        except UnicodeDecodeError:
            raise NotAModel(f"{name} is not UTF-8") from None

    def has_text(self, key: str) -> bool:
        """Of any length."""
        found = self._find(key)
        return found is not None and found[1].kind is ValueKind.STRING and found[1].count is None and found[1].raw != b""

    def number(self, key: str, *, least: int = 0, most: int = (1 << 32) - 1, kind: ValueKind = ValueKind.UINT32) -> int | None:
        found = self._find(key)
        if found is None:
            return None
        name, value = found
        if value.kind is not kind or value.count is not None or value.raw is None:
            raise NotAModel(f"{name} is no number of the type {kind.name.lower()}")
        return _within(name, int.from_bytes(value.raw, "little"), least, most)

    def per_block(self, key: str, blocks: int | None, *, most: int = MAX_WIDTH) -> tuple[int, ...]:
        """A number for every block, or one for all; empty where there is none."""
        found = self._find(key)
        if found is None or blocks is None:
            return ()
        name, value = found
        if value.count is None:
            return (self.number(key, most=most) or 0,) * blocks
        if value.count != blocks or value.kind not in (ValueKind.INT32, ValueKind.UINT32) or value.raw is None:
            raise NotAModel(f"{name} is no array of {blocks} 32-bit numbers, one for each block")
        numbers = (int.from_bytes(value.raw[at : at + 4], "little") for at in range(0, len(value.raw), 4))
        return tuple(_within(name, number, 0, most) for number in numbers)

    def array_length(self, key: str, kind: ValueKind) -> int | None:
        found = self._find(key)
        if found is None:
            return None
        name, value = found
        if value.kind is not kind or value.count is None:
            raise NotAModel(f"{name} is no array of the type {kind.name.lower()}")
        return value.count

    def _find(self, key: str) -> tuple[str, Value] | None:
        name = key if key.startswith(("general.", "tokenizer.", "split.")) else f"{self.architecture}.{key}"
        value = self._values.get(name)
        return None if value is None else (name, value)


def _within(name: str, number: int, least: int, most: int) -> int:
    if not least <= number <= most:
        raise NotAModel(f"{name} is {number}, and must be from {least} to {most}")
    return number


def _split(facts: _Facts) -> tuple[int, int]:
    count = facts.number("split.count", kind=ValueKind.UINT16) or 1
    number = facts.number("split.no", kind=ValueKind.UINT16) or 0
    return count, _within("split.no", number, 0, count - 1)


def _pooling(facts: _Facts) -> PoolingKind | None:
    number = facts.number("pooling_type", most=max(PoolingKind))
    return None if number is None else PoolingKind(number)


def _blocks(facts: _Facts) -> int | None:
    blocks = facts.number("block_count", least=1, most=MAX_LAYERS)
    if blocks is not None:
        # Layers that predict further tokens are among the blocks, and llama.cpp asserts it.
        facts.number("nextn_predict_layers", most=blocks)
    return blocks


def _refuse_rope_scaling(facts: _Facts) -> None:
    scaling = facts.text("rope.scaling.type")
    if scaling is not None and scaling not in _ROPE_SCALINGS:
        raise NotAModel(f"rope.scaling.type is {scaling[:64]!r}, and must be one of {', '.join(_ROPE_SCALINGS)}")


def _refuse_experts(facts: _Facts) -> None:
    """llama.cpp asserts how the numbers of a mixture of experts belong together."""
    experts = facts.number("expert_count", most=MAX_EXPERTS) or 0
    used = max(facts.per_block("expert_used_count", _blocks(facts), most=MAX_EXPERTS), default=0)
    groups = facts.number("expert_group_count", most=MAX_EXPERTS) or 0
    groups_used = facts.number("expert_group_used_count", most=MAX_EXPERTS) or 0
    if experts <= 1 and facts.architecture in _SINGLE_EXPERT_ALLOWED:
        return
    for wrong in _wrong_experts(experts, used, groups, groups_used):
        raise NotAModel(f"its numbers of experts do not belong together: {wrong}")


def _wrong_experts(experts: int, used: int, groups: int, groups_used: int) -> Iterator[str]:
    if used > experts or (experts and not used):
        yield f"{used} of {experts} experts in use"
    if groups and groups >= experts:
        yield f"{groups} groups of {experts} experts"
    if groups > 1 and (experts % groups or not 0 < groups_used < groups):
        yield f"{groups_used} of {groups} groups of {experts} experts in use"
