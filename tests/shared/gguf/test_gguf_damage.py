"""Thousands of damaged headers: each is refused, or the damage does not affect the file's structure.

Damage to texts, values and padding is harmless: a wrong value may be refused, or make a useless model. A file also stays valid if it
claims the older version, which has the same layout; if an unused value has another type of the same width; and if it has fewer or
smaller tensors, which leaves unused bytes.
"""

import io
import itertools
import random
import tracemalloc
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from shared.gguf import gguf_container, gguf_header
from shared.gguf.gguf_header import GgufHeader, NotAModel
from tests import gguf_by_llama, gguf_files, tiers
from tests.gguf_files import LlamaShape, Role, Tensor, array, single, text, texts

#: Every type of value, alone and in arrays, and every fact that the reader asks for.
PAIRS = {
    "general.architecture": text("llama"),
    "general.name": text("a model of nothing"),
    "general.alignment": single("u32", 32),
    "general.file_type": single("u32", 7),
    "llama.context_length": single("u32", 2048),
    "llama.block_count": single("u32", 3),
    "llama.embedding_length": single("u32", 64),
    "llama.attention.head_count": single("u32", 4),
    "llama.attention.head_count_kv": array("i32", [2, 0, 1]),
    "llama.pooling_type": single("u32", 0),
    "llama.expert_count": single("u32", 4),
    "llama.expert_used_count": single("u32", 2),
    "llama.rope.scaling.type": text("yarn"),
    "split.count": single("u16", 1),
    "split.no": single("u16", 0),
    "tokenizer.ggml.tokens": texts(["a", "b", "", "c\0d", "e"]),
    "tokenizer.chat_template": text("{{ messages }}"),
    **{f"one.{kind}": single(kind, 1) for kind in ("u8", "i8", "i16", "i32", "f32", "bool", "u64", "i64", "f64")},
    **{f"many.{kind}": array(kind, [1, 0, 1]) for kind in ("u8", "i8", "u16", "i16", "u32", "f32", "bool", "u64", "i64", "f64")},
    "many.none": texts([]),
}
#: Each fills whole units of alignment, so no larger shape hides in the padding.
TENSORS = (
    Tensor("one", (8,), "f32"),
    Tensor("two", (32, 16), "q8_0"),
    Tensor("three", (2, 2, 4), "f16"),
    Tensor("four", (32, 4, 2, 2), "q4_0"),
)
PARTS = gguf_files.file(PAIRS, TENSORS)
WHOLE = gguf_files.joined(PARTS)
HEADER_BYTES = len(gguf_files.joined(gguf_files.header(PAIRS, TENSORS)))
ROLES = [part.role for part in PARTS for _ in part.raw]

WITHOUT_STRUCTURE = {Role.TEXT, Role.VALUE, Role.PADDING, Role.WEIGHTS}
#: What a length, a count or an offset may be changed to: zero, signs, the limits of every width, and a little beyond.
HOSTILE = [0, 1, 2, 3, 7, 31, 33, 255, 256, 65_535, 65_536, 65_537, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 53]
HOSTILE += [1 << 58, 1 << 60, 1 << 61, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, (1 << 64) - 32, (1 << 64) - 1]


class CountingFile(io.BytesIO):
    """Refuses to read a byte twice, or more than needed at a time."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self.reads = self.bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert 0 < size <= len(WHOLE)
        got = super().read(size)
        self.reads += 1
        self.bytes_read += len(got)
        assert self.bytes_read <= len(WHOLE)
        assert self.reads <= len(WHOLE) // gguf_container.CHUNK_BYTES + 1
        return got


def read(raw: bytes) -> GgufHeader | None:
    """Return None for a refused file. Anything but NotAModel fails the test."""
    try:
        return gguf_header.read_header(CountingFile(raw), len(raw))
    except NotAModel as refused:
        message = str(refused)
    assert 10 < len(message) < 500
    return None


SOUND = read(WHOLE)


def is_harmless(header: GgufHeader, role: Role) -> bool:
    assert SOUND is not None
    match role:
        case Role.COUNT:
            return header.tensor_bytes < SOUND.tensor_bytes
        case Role.VERSION | Role.KIND:
            return header == SOUND
        case Role.SHAPE | Role.STORAGE:
            return header.tensor_bytes <= SOUND.tensor_bytes
        case _:
            return role in WITHOUT_STRUCTURE


def flipped_bits() -> Iterator[tuple[int, bytes]]:
    for at in range(HEADER_BYTES):
        # `make test` flips two bits of each byte.
        step = 1 if tiers.is_nightly() else 4
        for bit in range(at % step, 8, step):
            yield at, WHOLE[:at] + bytes([WHOLE[at] ^ 1 << bit]) + WHOLE[at + 1 :]


def hostile_numbers() -> Iterator[tuple[int, bytes]]:
    """Replace every number of the structure by each hostile one and by its neighbors."""
    at = 0
    for part in PARTS:
        if part.role not in WITHOUT_STRUCTURE:
            width, number = len(part.raw), int.from_bytes(part.raw, "little")
            for hostile in {*HOSTILE, number - 1, number + 1, -number, number << 32} - {number}:
                raw = (hostile & (1 << 8 * width) - 1).to_bytes(width, "little")
                if raw != part.raw:
                    yield at, WHOLE[:at] + raw + WHOLE[at + width :]
        at += len(part.raw)


def random_damage(seed: int, count: int) -> Iterator[bytes]:
    """Change, remove, duplicate and move runs of bytes, several in one file."""
    rng = random.Random(seed)
    for _ in range(count):
        raw = bytearray(WHOLE)
        for _ in range(rng.randint(1, 4)):
            at, length = rng.randrange(HEADER_BYTES), rng.choice([1, 4, 8, 40])
            match rng.randrange(4):
                case 0:
                    raw[at : at + length] = rng.randbytes(length)
                case 1:
                    del raw[at : at + length]
                case 2:
                    raw[at:at] = raw[at : at + length]
                case _:
                    raw[at : at + length] = rng.choice([b"\0", b"\xff"]) * length
        yield bytes(raw[: len(WHOLE)])


def test_undamaged_file_is_read() -> None:
    assert SOUND is not None
    assert (SOUND.vocabulary_size, SOUND.kv_head_counts) == (5, (2, 0, 1))


@cache
def passed() -> list[tuple[Role, bytes, GgufHeader]]:
    """Return the flipped bits and hostile numbers that are not refused."""
    return [(ROLES[at], raw, header) for damaged in (flipped_bits(), hostile_numbers()) for at, raw in damaged if (header := read(raw))]


def test_flipped_bits_and_hostile_numbers_are_found_or_harmless() -> None:
    assert [(role, header) for role, _, header in passed() if not is_harmless(header, role)] == []


def memory_to_read(raw: bytes) -> int:
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    read(raw)
    _, peak = tracemalloc.get_traced_memory()
    return peak - before


def test_hostile_numbers_use_no_memory() -> None:
    tracemalloc.start()
    try:
        for _, raw in itertools.islice(hostile_numbers(), 0, None, 7):
            # Other threads of the process are counted too, so the test fails only if a large figure comes twice.
            assert memory_to_read(raw) < 1024 * 1024 or memory_to_read(raw) < 1024 * 1024
    finally:
        tracemalloc.stop()


def test_truncated_file_is_refused() -> None:
    assert ROLES[-1] is Role.WEIGHTS
    assert [length for length in range(len(WHOLE)) if read(WHOLE[:length])] == []


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_refused_or_leaves_a_valid_header(seed: int) -> None:
    for raw in random_damage(seed, 1000):
        if header := read(raw):
            assert header.tensor_bytes <= len(raw)


def test_accepted_files_are_valid_for_llama_cpp(tmp_path: Path) -> None:
    """Checks all changes of the structure that passed above, and some of the others."""
    rng = random.Random(1)
    raws = [raw for role, raw, _ in passed() if role not in WITHOUT_STRUCTURE]
    raws += rng.sample([raw for role, raw, _ in passed() if role in WITHOUT_STRUCTURE], 200)
    raws += [raw for raw in random_damage(9, 1000) if read(raw)]
    paths = [tmp_path / f"{number}.gguf" for number in range(len(raws))]
    for path, raw in zip(paths, raws, strict=True):
        path.write_bytes(raw)
    assert len(paths) > 250
    assert all(gguf_by_llama.opinions("read", paths))


def test_accepted_damaged_models_do_not_crash_llama_cpp(tmp_path: Path) -> None:
    """llama.cpp may load the file or refuse it, but must not crash its process."""
    path = tmp_path / "model.gguf"
    shape = LlamaShape(layers=2, embedding=64, heads=4, kv_heads=2, feed_forward=128, vocabulary=300, context=64)
    gguf_files.write_llama(path, shape, weights="q8_0", seed=1)
    whole, rng = path.read_bytes(), random.Random(4)
    end = whole.index(b"blk.0")
    paths = []
    tries = tiers.volume(600, least=300)
    for number in range(tries):
        raw = bytearray(whole)
        at = rng.randrange(end)
        raw[at] = rng.choice([0, 1, raw[at] ^ 1 << rng.randrange(8), 127, 128, 255])
        if _passes(bytes(raw)):
            paths.append(tmp_path / f"{number}_{at}.gguf")
            paths[-1].write_bytes(raw)
    assert len(paths) > tries // 4
    assert any(gguf_by_llama.opinions("load", paths))


def _passes(raw: bytes) -> bool:
    try:
        gguf_header.read_header(io.BytesIO(raw), len(raw))
    except NotAModel:
        return False
    return True
