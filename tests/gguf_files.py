"""GGUF files for tests: small ones to damage, and models of a realistic shape with random weights."""

import random
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Literal

#: ggml's type number, then the elements and bytes of a block.
STORAGE = {"f32": (0, 1, 4), "f16": (1, 1, 2), "q4_0": (2, 32, 18), "q8_0": (8, 32, 34)}
_SINGLE = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f")} | {
    "bool": (7, "?"),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
_STRING, _ARRAY = 8, 9
#: Bytes of a tensor's weights kept in memory while it is written.
_POOL_BYTES = 1024 * 1024


class Role(StrEnum):
    """The meaning of a run of bytes in the format."""

    MAGIC = "magic"
    VERSION = "version"
    COUNT = "count of pairs or tensors"
    LENGTH = "length of a text"
    TEXT = "text"
    KIND = "type of a value"
    ELEMENTS = "length of an array"
    VALUE = "value"
    DIMENSIONS = "number of dimensions"
    SHAPE = "shape"
    STORAGE = "type of a tensor"
    OFFSET = "offset"
    PADDING = "padding"
    WEIGHTS = "weights"


@dataclass(frozen=True, slots=True)
class Part:
    role: Role
    raw: bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    storage: str

    @property
    def bytes(self) -> int:
        _, elements, size = STORAGE[self.storage]
        total = 1
        for length in self.shape:
            total *= length
        return total // elements * size


#: The parts of a pair's value, starting with its type.
Typed = list[Part]


def single(kind: str, value: float) -> Typed:
    number, code = _SINGLE[kind]
    return [_u32(Role.KIND, number), Part(Role.VALUE, struct.pack(f"<{code}", value))]


def array(kind: str, values: Sequence[float]) -> Typed:
    number, code = _SINGLE[kind]
    raw = struct.pack(f"<{len(values)}{code}", *values)
    return [_u32(Role.KIND, _ARRAY), _u32(Role.KIND, number), _u64(Role.ELEMENTS, len(values)), Part(Role.VALUE, raw)]


def text(value: str | bytes) -> Typed:
    return [_u32(Role.KIND, _STRING), *_text(value)]


def texts(values: Sequence[str | bytes]) -> Typed:
    head = [_u32(Role.KIND, _ARRAY), _u32(Role.KIND, _STRING), _u64(Role.ELEMENTS, len(values))]
    return head + [part for value in values for part in _text(value)]


def header(pairs: Mapping[str, Typed], tensors: Sequence[Tensor], *, version: int = 3, alignment: int = 32) -> list[Part]:
    """Return the parts before the weights."""
    parts = [Part(Role.MAGIC, b"GGUF"), _u32(Role.VERSION, version), _u64(Role.COUNT, len(tensors)), _u64(Role.COUNT, len(pairs))]
    for key, value in pairs.items():
        parts += [*_text(key), *value]
    offset = 0
    for tensor in tensors:
        parts += [*_text(tensor.name), _u32(Role.DIMENSIONS, len(tensor.shape)), *(_u64(Role.SHAPE, length) for length in tensor.shape)]
        parts += [_u32(Role.STORAGE, STORAGE[tensor.storage][0]), _u64(Role.OFFSET, offset)]
        offset += tensor.bytes + -tensor.bytes % alignment
    if tensors:
        parts.append(Part(Role.PADDING, bytes(-sum(len(part.raw) for part in parts) % alignment)))
    return parts


def file(pairs: Mapping[str, Typed], tensors: Sequence[Tensor], *, version: int = 3, alignment: int = 32) -> list[Part]:
    """Return the parts of a whole file, with zero weights."""
    parts = header(pairs, tensors, version=version, alignment=alignment)
    for tensor in tensors:
        parts += [Part(Role.WEIGHTS, bytes(tensor.bytes)), Part(Role.PADDING, bytes(-tensor.bytes % alignment))]
    return parts


def joined(parts: Sequence[Part]) -> bytes:
    return b"".join(part.raw for part in parts)


def _u32(role: Role, number: int) -> Part:
    return Part(role, struct.pack("<I", number))


def _u64(role: Role, number: int) -> Part:
    return Part(role, struct.pack("<Q", number))


def _text(value: str | bytes) -> list[Part]:
    raw = value.encode() if isinstance(value, str) else value
    return [_u64(Role.LENGTH, len(raw)), Part(Role.TEXT, raw)]


# --- models that llama.cpp loads ------------------------------------------------------------------------------------

Weights = Literal["q8_0", "f16"]
#: One token per byte, then these, then words that no prompt contains, so a text has as many tokens as bytes.
_BYTES = 256
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    layers: int
    embedding: int
    heads: int
    kv_heads: int
    feed_forward: int
    #: At least 259.
    vocabulary: int
    context: int
    #: If set, two experts compute each token.
    experts: int = 0
    #: If set, every second layer sees only this many tokens: the model is a gemma2.
    window: int = 0

    #: Three of four layers see only their chunk of 8,192 tokens: the model is a llama4, without experts in any layer.
    chunked: bool = False

    #: Every second layer has a recurrent state: the model is an lfm2.
    hybrid: bool = False

    #: Positions have several coordinates (M-RoPE): the model is a qwen2vl.
    sections: tuple[int, ...] = ()

    @property
    def architecture(self) -> str:
        kinds = {"gemma2": self.window, "llama4": self.chunked, "lfm2": self.hybrid, "qwen2vl": self.sections, "llama": True}
        return next(name for name, is_used in kinds.items() if is_used)


def write_llama(path: Path, shape: LlamaShape, *, weights: Weights, seed: int) -> None:
    """Write a model of the llama architecture that llama.cpp loads, for tests of speed and memory; its answers are meaningless.

    The same seed writes the same file. The file is written piece by piece, so it may be larger than memory.
    """
    tensors = _llama_tensors(shape, weights)
    rng = random.Random(seed)
    pools: dict[tuple[str, int], bytes] = {}
    with path.open("wb") as target:
        target.write(joined(header(_llama_pairs(shape, weights), tensors)))
        for tensor in tensors:
            _write_weights(target, tensor, pools, rng)


AdapterWeights = Literal["f32", "f16", "q8_0"]


def write_adapter(
    path: Path,
    shape: LlamaShape,
    *,
    weights: AdapterWeights = "f16",
    seed: int,
    rank: int = 32,
    changed: Mapping[str, Typed] | None = None,
    names: Sequence[str] = ("attn_q", "attn_v", "ffn_down"),
) -> None:
    """Write a LoRA adapter that changes a model of this shape as much as its own weights do. ``changed``: pairs of the header."""
    pairs = {
        "general.architecture": text(shape.architecture),
        "general.type": text("adapter"),
        "adapter.type": text("lora"),
        "adapter.lora.alpha": single("f32", float(rank)),
        **(changed or {}),
    }
    targets = [one for one in _llama_tensors(shape, "f16") if one.name.split(".")[-2] in names]
    tensors = [
        Tensor(f"{target.name}.lora_{matrix}", lengths, weights)
        for target in targets
        for matrix, lengths in (("a", (target.shape[0], rank)), ("b", (rank, target.shape[1])))
    ]
    rng = random.Random(seed)
    with path.open("wb") as target_file:
        target_file.write(joined(header(pairs, tensors)))
        for tensor in tensors:
            target_file.write(_random(tensor, rng) + bytes(-tensor.bytes % 32))


def _random(tensor: Tensor, rng: random.Random) -> bytes:
    spread, (_, elements, _) = tensor.shape[0] ** -0.5, STORAGE[tensor.storage]
    if tensor.storage == "q8_0":
        count = tensor.shape[0] * tensor.shape[1] // elements
        return b"".join(struct.pack("<e", spread / 73) + rng.randbytes(elements) for _ in range(count))
    count = tensor.shape[0] * tensor.shape[1]
    return struct.pack(f"<{count}{'f' if tensor.storage == 'f32' else 'e'}", *(rng.uniform(-1.7, 1.7) * spread for _ in range(count)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorShape:
    """The shape of a projector, which turns images into embeddings."""

    #: llama.cpp's name for its kind: mlp (LLaVA), gemma3 (rows see each other), or qwen2vl_merger (any size, for M-RoPE).
    kind: Literal["mlp", "gemma3", "qwen2vl_merger"]
    #: The model's embedding length.
    width: int
    image: int = 32
    patch: int = 8
    embedding: int = 32
    heads: int = 2
    layers: int = 2


def write_projector(path: Path, shape: ProjectorShape, *, seed: int) -> None:
    rng, pools = random.Random(seed), dict[tuple[str, int], bytes]()
    tensors = list(_projector_tensors(shape))
    numbers = {
        "embedding_length": shape.embedding,
        "feed_forward_length": 2 * shape.embedding,
        "block_count": shape.layers,
        "projection_dim": shape.width,
        "attention.head_count": shape.heads,
        "image_size": shape.image,
        "patch_size": shape.patch,
        "projector.scale_factor": 2,
    }
    pairs = {
        "general.architecture": text("clip"),
        "clip.projector_type": text(shape.kind),
        "clip.has_vision_encoder": single("bool", True),
        "clip.use_gelu": single("bool", True),
        **{f"clip.vision.{key}": single("u32", number) for key, number in numbers.items()},
        "clip.vision.attention.layer_norm_epsilon": single("f32", 1e-5),
        "clip.vision.image_mean": array("f32", [0.5] * 3),
        "clip.vision.image_std": array("f32", [0.5] * 3),
    }
    with path.open("wb") as target:
        target.write(joined(header(pairs, tensors)))
        for tensor in tensors:
            _write_weights(target, tensor, pools, rng)


def _projector_tensors(shape: ProjectorShape) -> Iterator[Tensor]:
    wide = shape.embedding
    is_grid = shape.kind == "qwen2vl_merger"
    for name in ("v.patch_embd.weight", *(("v.patch_embd.weight.1",) if is_grid else ())):
        yield Tensor(name, (shape.patch, shape.patch, 3, wide), "f16")
    if not is_grid:
        yield Tensor("v.position_embd.weight", (wide, (shape.image // shape.patch) ** 2), "f32")
    for layer in range(shape.layers):
        for name, matrix in {
            **{f"attn_{each}": (wide, wide) for each in ("q", "k", "v", "out")},
            "ffn_up": (wide, 2 * wide),
            "ffn_down": (2 * wide, wide),
        }.items():
            yield Tensor(f"v.blk.{layer}.{name}.weight", matrix, "f16")
        for name in ("ln1.weight", "ln2.weight", *(f"attn_{each}.bias" for each in ("q", "k", "v", "out"))):
            yield Tensor(f"v.blk.{layer}.{name}", (wide,), "f32")
    yield Tensor("v.post_ln.weight", (wide,), "f32")
    if shape.kind == "gemma3":
        # Two dimensions: the model's, then the encoder's.
        yield Tensor("mm.input_projection.weight", (shape.width, wide), "f16")
        yield Tensor("mm.soft_emb_norm.weight", (wide,), "f32")
        return
    inner = 4 * wide if is_grid else wide
    for number, matrix in ((0, (inner, inner)), (2, (inner, shape.width))):
        yield Tensor(f"mm.{number}.weight", matrix, "f16")
        yield Tensor(f"mm.{number}.bias", matrix[1:], "f32")


def _llama_pairs(shape: LlamaShape, weights: Weights) -> dict[str, Typed]:
    words = [f"word{number}" for number in range(shape.vocabulary - _BYTES - len(_SPECIAL))]
    tokens = [*_byte_letters(), *_SPECIAL, *words]
    normal, control = 1, 3
    kinds = [normal] * _BYTES + [control] * len(_SPECIAL) + [normal] * len(words)
    numbers = {
        "context_length": shape.context,
        "embedding_length": shape.embedding,
        "block_count": shape.layers,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "rope.dimension_count": shape.embedding // shape.heads,
    }
    if shape.window:
        head = shape.embedding // shape.heads
        numbers |= {"attention.sliding_window": shape.window, "attention.key_length": head, "attention.value_length": head}
    if shape.hybrid:
        numbers["shortconv.l_cache"] = 3
    if shape.experts:
        numbers |= {"expert_count": shape.experts, "expert_used_count": 2}
    if shape.chunked:
        numbers |= {"expert_count": 2, "expert_used_count": 1, "expert_feed_forward_length": 32, "interleave_moe_layer_step": 0}
    return {
        "general.architecture": text(shape.architecture),
        "general.name": text(f"random {shape.architecture}, {shape.layers} layers of {shape.embedding}"),
        "general.file_type": single("u32", {"q8_0": 7, "f16": 1}[weights]),
        **{f"{shape.architecture}.{key}": single("u32", number) for key, number in numbers.items()},
        **(
            {"lfm2.attention.head_count_kv": array("i32", [layer % 2 * shape.kv_heads for layer in range(shape.layers)])}
            if shape.hybrid
            else {}
        ),
        **({f"{shape.architecture}.rope.dimension_sections": array("i32", shape.sections)} if shape.sections else {}),
        f"{shape.architecture}.attention.layer_norm_rms_epsilon": single("f32", 1e-5),
        f"{shape.architecture}.rope.freq_base": single("f32", 10_000.0),
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text("default"),
        "tokenizer.ggml.tokens": texts(tokens),
        "tokenizer.ggml.token_type": array("i32", kinds),
        "tokenizer.ggml.merges": texts([]),
        "tokenizer.ggml.bos_token_id": single("u32", tokens.index("<|endoftext|>")),
        "tokenizer.ggml.eos_token_id": single("u32", tokens.index("<|im_end|>")),
        "tokenizer.ggml.add_bos_token": single("bool", False),
        "tokenizer.chat_template": text(_TEMPLATE),
    }


def _byte_letters() -> Iterator[str]:
    """Yield the letter for each byte in a byte-level vocabulary: its own character if printable, else one from 256 on."""
    following = 256
    for byte in range(_BYTES):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
            yield chr(byte)
        else:
            yield chr(following)
            following += 1


def _llama_tensors(shape: LlamaShape, weights: Weights) -> list[Tensor]:
    wide, keys = shape.embedding, shape.embedding // shape.heads * shape.kv_heads
    matrices: dict[str, tuple[int, ...]] = {
        "attn_q": (wide, wide),
        "attn_k": (wide, keys),
        "attn_v": (wide, keys),
        "attn_output": (wide, wide),
    }
    ending, each = ("_exps", (shape.experts,)) if shape.experts else ("", ())
    matrices |= {f"ffn_{name}{ending}": (wide, shape.feed_forward, *each) for name in ("gate", "up")}
    matrices[f"ffn_down{ending}"] = (shape.feed_forward, wide, *each)
    tensors = [Tensor("token_embd.weight", (wide, shape.vocabulary), weights)]
    norms = ["attn_norm", "ffn_norm"]
    if shape.window:
        norms += ["post_attention_norm", "post_ffw_norm"]
    else:
        tensors.append(Tensor("output.weight", (wide, shape.vocabulary), weights))
    for layer in range(shape.layers):
        tensors += [Tensor(f"blk.{layer}.{name}.weight", (wide,), "f32") for name in norms]
        mixing = {name: matrix for name, matrix in matrices.items() if not (shape.hybrid and layer % 2 == 0 and name.startswith("attn"))}
        tensors += [Tensor(f"blk.{layer}.{name}.weight", matrix, weights) for name, matrix in mixing.items()]
        if shape.hybrid and layer % 2 == 0:
            tensors += [
                Tensor(f"blk.{layer}.shortconv.{name}.weight", (wide, wide * times), weights)
                for name, times in (("in_proj", 3), ("out_proj", 1))
            ]
            tensors.append(Tensor(f"blk.{layer}.shortconv.conv.weight", (3, wide), "f32"))
        elif shape.hybrid:
            tensors += [Tensor(f"blk.{layer}.attn_{name}_norm.weight", (wide // shape.heads,), "f32") for name in "qk"]
        if shape.experts:
            tensors.append(Tensor(f"blk.{layer}.ffn_gate_inp.weight", (wide, shape.experts), "f32"))
    return [*tensors, Tensor("token_embd_norm.weight" if shape.hybrid else "output_norm.weight", (wide,), "f32")]


def _write_weights(target: BinaryIO, tensor: Tensor, pools: dict[tuple[str, int], bytes], rng: random.Random) -> None:
    key = (tensor.storage, tensor.shape[0])
    if key not in pools:
        pools[key] = _pool(*key, rng)
    pool, block = pools[key], STORAGE[tensor.storage][2]
    left = tensor.bytes
    while left:
        begin = rng.randrange(len(pool) // block) * block
        left -= target.write(pool[begin : begin + left])
    target.write(bytes(-tensor.bytes % 32))


def _pool(storage: str, row: int, rng: random.Random) -> bytes:
    """Return weights to draw from, so small that a layer's sums stay near 1; all ones for the norms."""
    if storage == "f32":
        return struct.pack("<f", 1.0) * (_POOL_BYTES // 4)
    spread = row**-0.5
    if storage == "f16":
        count = _POOL_BYTES // 2
        return struct.pack(f"<{count}e", *(rng.uniform(-1.7, 1.7) * spread for _ in range(count)))
    scale, blocks = struct.pack("<e", spread / 73), _POOL_BYTES // 34
    return b"".join(scale + rng.randbytes(32) for _ in range(blocks))
