"""Interprets and checks the header of a model file before llama.cpp maps it.

llama.cpp aborts its process on some values instead of refusing the file, such as a repeated word in the vocabulary, 0 layers, or
more used experts than there are. They are refused here with a message. llama.cpp itself refuses missing tensors and wrong shapes.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, TypeVar

from shared.gguf import gguf_container
from shared.gguf.gguf_container import GgufContainer, NotAModel, StoredTensor, Value, ValueKind

__all__ = ["GgufHeader", "NotAModel", "PoolingKind", "check_adapters", "check_parts", "kv_bytes_per_token", "read_beginning", "read_header"]

Done = TypeVar("Done")

#: LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS; beyond them llama.cpp aborts.
MAX_LAYERS = 512
MAX_EXPERTS = 1024
#: Larger than any model, and small enough to compute with.
MAX_CONTEXT_TOKENS = 1 << 30
MAX_WIDTH = 1 << 24
#: llama.cpp opens all parts at once; less than confinement.MAX_OPEN_FILES.
MAX_PARTS = 512

#: The architecture in the header of files that make embeddings of images.
PROJECTOR = "clip"
_TOKENS = "tokenizer.ggml.tokens"
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
#: Models without a KV cache, which read a text at once.
_WITHOUT_CACHE = frozenset(
    (
        *("bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert"),
        *("nomic-bert-moe", "t5encoder", "dream", "llada", "llada-moe", "rnd1"),
    )
)
#: llama.cpp ignores a single expert in these.
_SINGLE_EXPERT_ALLOWED = frozenset({"hunyuan-dense", "hunyuan_vl"})
#: What llama.cpp's converter writes.
_ADAPTER_TYPES = ("f32", "f16", "bf16", "q8_0")
_INVOCATION = "adapter.alora.invocation_tokens"
_EMBEDDINGS, _OUTPUT = "token_embd.weight", "output.weight"


class PoolingKind(IntEnum):
    """How the vectors of a text's tokens become one, by llama.cpp's numbers."""

    NONE = 0
    MEAN = 1
    CLS = 2
    LAST = 3
    #: The model ranks texts: a vector is one number.
    RANK = 4


@dataclass(frozen=True, slots=True)
class ProjectorFacts:
    """How a file computes embeddings of images; 0 if it doesn't say."""

    kind: str
    image_size: int
    patch_size: int
    width: int
    feed_forward: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """None and () mean that the file has no value."""

    #: None only in later parts of a split model.
    architecture: str | None
    context_length: int | None
    block_count: int | None
    embedding_length: int | None
    head_counts: tuple[int, ...]
    #: Fewer than the heads if several share keys and values; 0 in a block without attention.
    kv_head_counts: tuple[int, ...]
    key_length: int | None
    value_length: int | None
    vocabulary_size: int | None
    pooling_type: PoolingKind | None
    tensor_bytes: int
    #: 1 for a model in one file.
    split_count: int
    split_number: int
    #: The tensors of a mixture of experts, which only some tokens use.
    expert_bytes: int = 0
    #: The types of its tensors with several dimensions.
    matrix_types: frozenset[str] = frozenset()
    #: Only of a file that makes embeddings of images.
    projector: ProjectorFacts | None = None


def read_header(file: BinaryIO, size: int) -> GgufHeader:
    """Read and check the header of a file of ``size`` bytes. Raises NotAModel."""
    return _interpret(gguf_container.read(file, size, distinct=_TOKENS))


def read_beginning(beginning: bytes, file_bytes: int) -> GgufHeader:
    """Read what the first bytes of a model's file say, of which all tensors have ``file_bytes``. Raises NotAModel."""
    return _interpret(GgufContainer(gguf_container.read_beginning(beginning), {}, file_bytes, 0))


def _interpret(container: GgufContainer) -> GgufHeader:
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
        architecture=facts.architecture,
        context_length=facts.number("context_length", least=1, most=MAX_CONTEXT_TOKENS),
        block_count=blocks,
        embedding_length=embedding_length,
        head_counts=heads,
        kv_head_counts=facts.per_block("attention.head_count_kv", blocks) or heads,
        key_length=facts.number("attention.key_length", most=MAX_WIDTH) or head_length,
        value_length=facts.number("attention.value_length", most=MAX_WIDTH) or head_length,
        vocabulary_size=facts.count_texts(_TOKENS),
        pooling_type=_pooling(facts),
        tensor_bytes=container.tensor_bytes,
        expert_bytes=container.expert_bytes,
        split_count=split_count,
        split_number=split_number,
        matrix_types=frozenset(stored for stored, shape in container.tensors.values() if len(shape) > 1),
        projector=_projector(facts) if facts.architecture == PROJECTOR else None,
    )


def _projector(facts: "_Facts") -> ProjectorFacts:
    names = ("image_size", "patch_size", "embedding_length", "feed_forward_length")
    numbers = (facts.number(f"vision.{name}", most=MAX_WIDTH) or 0 for name in names)
    return ProjectorFacts(facts.text("projector_type") or facts.text("vision.projector_type") or "", *numbers)


def kv_bytes_per_token(header: GgufHeader, type_k: str = "f16", type_v: str = "f16") -> int | None:
    """Return the most memory that one token of context needs; None if unknown.

    Models with windows, shared or compressed keys need less. The fixed state of a recurrent model doesn't count, so None for a
    purely recurrent one.
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


def check_parts(path: Path) -> GgufHeader:
    """Check the headers of all parts of the model at ``path``, and return the first, with the matrix types of all. Raises NotAModel, which
    names the file."""
    first = _read(path, _interpret)
    types = first.matrix_types
    for number, part in enumerate(_further_parts(path, first), start=1):
        header = _read(part, _interpret)
        if (header.split_number, header.split_count) != (number, first.split_count):
            raise NotAModel(
                f"{part}: its header says part {header.split_number + 1} of {header.split_count}, "
                f"but it should be part {number + 1} of {first.split_count}"
            )
        types |= header.matrix_types
    return replace(first, matrix_types=types)


def _further_parts(path: Path, first: GgufHeader) -> Iterator[Path]:
    """Yield the other parts, by the names that llama.cpp will open."""
    if first.split_number:
        raise NotAModel(f"{path}: it is part {first.split_number + 1} of {first.split_count}; a model is opened by its first part")
    if first.split_count == 1:
        return
    if first.split_count > MAX_PARTS:
        raise NotAModel(f"{path}: its header says {first.split_count} parts; at most {MAX_PARTS} are allowed")
    ending = _part_suffix(1, first.split_count)
    if not path.name.endswith(ending) or path.name == ending:
        raise NotAModel(f"{path}: it is the first of {first.split_count} parts, so its name must end in {ending}")
    for number in range(2, first.split_count + 1):
        yield path.with_name(path.name.removesuffix(ending) + _part_suffix(number, first.split_count))


def _part_suffix(number: int, count: int) -> str:
    return f"-{number:05}-of-{count:05}.gguf"


def check_adapters(model: Path, adapters: Sequence[Path]) -> tuple[str, ...]:
    """Return for each LoRA adapter why llama.cpp can't apply it to a model; empty if it can. On much of it, llama.cpp would abort."""
    try:
        base, header = _read(model, lambda container: (container, _interpret(container)))
        parts = [base, *(_read(part, lambda container: container) for part in _further_parts(model, header))]
    except NotAModel as error:
        return (str(error),) * len(adapters)
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}

    def check(adapter: GgufContainer) -> str:
        return next(_wrong_parts(adapter, header.architecture, tensors), "")

    return tuple(_adapter_problem(path, check) for path in adapters)


def _adapter_problem(path: Path, check: Callable[[GgufContainer], str]) -> str:
    try:
        problem = _read(path, check)
    except NotAModel as error:
        return str(error)
    return problem and f"{path}: {problem}"


def _wrong_parts(adapter: GgufContainer, architecture: str | None, model: Mapping[str, StoredTensor]) -> Iterator[str]:
    facts = _Facts(adapter.values)
    kind, method = facts.text("general.type"), facts.text("adapter.type")
    facts.number("adapter.lora.alpha", kind=ValueKind.FLOAT32)
    if (kind, method) != ("adapter", "lora"):
        yield f"it is not a LoRA adapter: general.type is {kind!r}, and adapter.type is {method!r}"
    if facts.architecture != architecture:
        yield f"it is for models of the architecture {facts.architecture}, but the model's is {architecture}"
    if _INVOCATION in adapter.values:
        yield "it only applies after certain tokens (aLoRA), which isn't supported"
    yield from _wrong_pairs(adapter.tensors, model)


def _wrong_pairs(adapter: Mapping[str, StoredTensor], model: Mapping[str, StoredTensor]) -> Iterator[str]:
    """An adapter adds the product of two matrices to a tensor: ``b`` of its height times ``a`` of its width, with a rank between them."""
    if not adapter:
        yield "it has no tensors"
    for name, (stored, shape) in adapter.items():
        target, _, matrix = name.rpartition(".lora_")
        other = adapter.get(f"{target}.lora_{'b' if matrix == 'a' else 'a'}")
        if name.endswith("_norm.weight"):
            continue  # llama.cpp ignores these
        if matrix not in ("a", "b"):
            yield f"its tensor {name!r} is not a part of a LoRA adapter"
        elif other is None:
            yield f"the other matrix of its tensor {name!r} is missing"
        elif stored not in _ADAPTER_TYPES:
            yield f"its tensor {name!r} is stored as {stored}, but must be one of {', '.join(_ADAPTER_TYPES)}"
        else:
            a, b = (shape, other[1]) if matrix == "a" else (other[1], shape)
            yield from _wrong_target(target, a, b, model)


def _wrong_target(name: str, a: tuple[int, ...], b: tuple[int, ...], model: Mapping[str, StoredTensor]) -> Iterator[str]:
    stored, shape = model.get(name, ("", ()))
    if not stored:
        yield f"it changes the tensor {name!r}, which the model doesn't have; it is for another model"
    elif stored == "nvfp4":
        yield f"llama.cpp can't apply it to the tensor {name!r} of the type nvfp4"
    elif name == _EMBEDDINGS and _OUTPUT not in model:
        yield f"it changes {name!r}, which this model also uses for its output"
    elif not _is_pair(a, b, shape, embeds=name == _EMBEDDINGS):
        yield f"its matrices for {name!r} have the shapes {a} and {b}, but the model's tensor has {shape}; it is for another model"


def _is_pair(a: tuple[int, ...], b: tuple[int, ...], wanted: tuple[int, ...], *, embeds: bool) -> bool:
    if not len(a) == len(b) == len(wanted) >= 2:
        return False
    if embeds:
        # Its rows are looked up, so ``a`` is transposed.
        return a[0] == b[0] and (b[1], a[1]) == wanted
    return a[1] == b[0] and (a[0], b[1]) == wanted[:2] and a[2:] == b[2:] == wanted[2:]


def _read(path: Path, interpret: Callable[[GgufContainer], Done]) -> Done:
    """Raises NotAModel, which names the file."""
    try:
        # Opening a pipe would block.
        if not path.is_file():
            raise NotAModel("there is no such file")
        with path.open("rb") as file:
            return interpret(gguf_container.read(file, os.fstat(file.fileno()).st_size, distinct=_TOKENS))
    except OSError as error:
        raise NotAModel(f"{path}: it cannot be read: {error.strerror}") from error
    except NotAModel as error:
        raise NotAModel(f"{path}: {error}") from error


class _Facts:
    """Typed access to the pairs. A key without a section, such as `context_length`, belongs to the architecture."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = values
        self.architecture = self.text("general.architecture")

    def text(self, key: str) -> str | None:
        raw = self._single(key, ValueKind.STRING, f"a text, or has more than {gguf_container.MAX_KEPT_TEXT_BYTES} bytes")
        try:
            return None if raw is None else raw.decode()
        except UnicodeDecodeError:
            raise NotAModel(f"{self._name(key)} is not UTF-8") from None

    def number(self, key: str, *, least: int = 0, most: int = (1 << 32) - 1, kind: ValueKind = ValueKind.UINT32) -> int | None:
        raw = self._single(key, kind, f"a number of the type {kind.name.lower()}")
        return None if raw is None else _within(self._name(key), int.from_bytes(raw, "little"), least, most)

    def per_block(self, key: str, blocks: int | None, *, most: int = MAX_WIDTH) -> tuple[int, ...]:
        """Read one number per block, or one for all; empty if the key is missing."""
        value = self._find(key)
        if value is None or blocks is None:
            return ()
        if value.count is None:
            return (self.number(key, most=most) or 0,) * blocks
        if value.count != blocks or value.kind not in (ValueKind.INT32, ValueKind.UINT32) or value.raw is None:
            raise NotAModel(f"{self._name(key)} is not an array of {blocks} 32-bit numbers, one per block")
        numbers = (int.from_bytes(value.raw[at : at + 4], "little") for at in range(0, len(value.raw), 4))
        return tuple(_within(self._name(key), number, 0, most) for number in numbers)

    def count_texts(self, key: str) -> int | None:
        value = self._find(key)
        if value is None:
            return None
        if value.kind is not ValueKind.STRING or value.count is None:
            raise NotAModel(f"{self._name(key)} is not an array of texts")
        return value.count

    def _single(self, key: str, kind: ValueKind, what: str) -> bytes | None:
        value = self._find(key)
        if value is None:
            return None
        if value.kind is not kind or value.count is not None or value.raw is None:
            raise NotAModel(f"{self._name(key)} is not {what}")
        return value.raw

    def _find(self, key: str) -> Value | None:
        return self._values.get(self._name(key))

    def _name(self, key: str) -> str:
        return key if key.startswith(("general.", "tokenizer.", "split.", "adapter.")) else f"{self.architecture}.{key}"


def _within(name: str, number: int, least: int, most: int) -> int:
    if not least <= number <= most:
        raise NotAModel(f"{name} is {number}, but must be from {least} to {most}")
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
        # llama.cpp asserts that layers which predict further tokens are among the blocks.
        facts.number("nextn_predict_layers", most=blocks)
    return blocks


def _refuse_rope_scaling(facts: _Facts) -> None:
    scaling = facts.text("rope.scaling.type")
    if scaling is not None and scaling not in _ROPE_SCALINGS:
        raise NotAModel(f"rope.scaling.type is {scaling[:64]!r}, but must be one of {', '.join(_ROPE_SCALINGS)}")


def _refuse_experts(facts: _Facts) -> None:
    experts = facts.number("expert_count", most=MAX_EXPERTS) or 0
    used = max(facts.per_block("expert_used_count", _blocks(facts), most=MAX_EXPERTS), default=0)
    groups = facts.number("expert_group_count", most=MAX_EXPERTS) or 0
    groups_used = facts.number("expert_group_used_count", most=MAX_EXPERTS) or 0
    if experts <= 1 and facts.architecture in _SINGLE_EXPERT_ALLOWED:
        return
    for wrong in _wrong_experts(experts, used, groups, groups_used):
        raise NotAModel(f"its numbers of experts are inconsistent: {wrong}")


def _wrong_experts(experts: int, used: int, groups: int, groups_used: int) -> Iterator[str]:
    if used > experts or (experts and not used):
        yield f"{used} of {experts} experts in use"
    if groups and groups >= experts:
        yield f"{groups} groups of {experts} experts"
    if groups > 1 and (experts % groups or not 0 < groups_used < groups):
        yield f"{groups_used} of {groups} groups of {experts} experts in use"
