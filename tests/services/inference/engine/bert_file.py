"""A tiny BERT model with random weights that llama.cpp loads: it is bidirectional, and its vectors are meaningless."""

import random
import struct
from pathlib import Path

from tests import gguf_files
from tests.gguf_files import Tensor, Typed

RANK = 4
LAYERS, WIDE, FEED_FORWARD, CONTEXT = 2, 32, 64, 64
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "▁cat", "▁dog", "▁runs", "▁sleeps", "▁fast")


def write(path: Path, *, pooling: int) -> None:
    """Write the model. ``pooling`` is llama.cpp's number: 1 is the mean, 2 the first token, and 4 ranks texts."""
    tensors, rng = _tensors(pooling), random.Random(1)
    parts = gguf_files.header(_pairs(pooling), tensors)
    with path.open("wb") as target:
        target.write(gguf_files.joined(parts))
        for tensor in tensors:
            target.write(_weights(tensor, rng) + bytes(-tensor.bytes % 32))


def _weights(tensor: Tensor, rng: random.Random) -> bytes:
    count = tensor.bytes // 4
    values = [1.0 if "norm.weight" in tensor.name else rng.uniform(-1, 1) for _ in range(count)]
    return struct.pack(f"<{count}f", *values)


def _pairs(pooling: int) -> dict[str, Typed]:
    numbers = {
        "context_length": CONTEXT,
        "embedding_length": WIDE,
        "block_count": LAYERS,
        "feed_forward_length": FEED_FORWARD,
        "attention.head_count": 4,
        "pooling_type": pooling,
    }
    special = {"unknown": "[UNK]", "padding": "[PAD]", "cls": "[CLS]", "bos": "[CLS]", "seperator": "[SEP]", "mask": "[MASK]"}
    return {
        "general.architecture": gguf_files.text("bert"),
        **{f"bert.{key}": gguf_files.single("u32", number) for key, number in numbers.items()},
        "bert.attention.layer_norm_epsilon": gguf_files.single("f32", 1e-12),
        "bert.attention.causal": gguf_files.single("bool", False),
        "tokenizer.ggml.model": gguf_files.text("bert"),
        "tokenizer.ggml.token_type_count": gguf_files.single("u32", 2),
        "tokenizer.ggml.tokens": gguf_files.texts(WORDS),
        "tokenizer.ggml.token_type": gguf_files.array("i32", [3] * 5 + [1] * (len(WORDS) - 5)),
        **{f"tokenizer.ggml.{name}_token_id": gguf_files.single("u32", WORDS.index(word)) for name, word in special.items()},
    }


def _tensors(pooling: int) -> list[Tensor]:
    matrices = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDE, WIDE)),
        "ffn_up": (WIDE, FEED_FORWARD),
        "ffn_down": (FEED_FORWARD, WIDE),
    }
    tables = {"token_embd": len(WORDS), "token_types": 2, "position_embd": CONTEXT}
    tensors = [Tensor(f"{name}.weight", (WIDE, rows), "f32") for name, rows in tables.items()] + _norm("token_embd_norm")
    for layer in range(LAYERS):
        tensors += [Tensor(f"blk.{layer}.{name}.weight", shape, "f32") for name, shape in matrices.items()]
        tensors += [tensor for name in ("attn_output_norm", "layer_output_norm") for tensor in _norm(f"blk.{layer}.{name}")]
    if pooling == RANK:
        tensors += [Tensor("cls.weight", (WIDE, WIDE), "f32"), Tensor("cls.bias", (WIDE,), "f32")]
        tensors += [Tensor("cls.output.weight", (WIDE, 1), "f32"), Tensor("cls.output.bias", (1,), "f32")]
    return tensors


def _norm(name: str) -> list[Tensor]:
    return [Tensor(f"{name}.{part}", (WIDE,), "f32") for part in ("weight", "bias")]
