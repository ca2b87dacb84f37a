"""Parses the header of a GGUF file within limits, and refuses unsound ones.

Only this module knows the format; `gguf_header` interprets the pairs. The rules are at least as strict as those of
llama-cpp-python 0.3.36's reader (SECURITY.md, T24).
"""

import io
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO, TypeAlias

#: 2 and 3 have the same layout; llama.cpp no longer reads 1.
VERSIONS = (2, 3)
#: A vocabulary of 262,144 tokens with twice as many merges needs 16 MiB; an included tokenizer.json as much again.
MAX_HEADER_BYTES = 128 * 1024 * 1024
#: Models have dozens of pairs; llama.cpp searches them linearly.
MAX_PAIRS = 65_536
#: Three times llama.cpp's 512 layers with 40 tensors each, at several hundred bytes.
MAX_TENSORS = 65_536
#: Three times the longest in use; the format allows 65,535.
MAX_KEY_BYTES = 256
#: GGML_MAX_NAME is 64, with the final zero.
MAX_TENSOR_NAME_BYTES = 63
MAX_DIMENSIONS = 4
#: ggml counts elements in a signed 64-bit number.
MAX_ELEMENTS = (1 << 63) - 1
#: In all arrays together: five times a large vocabulary with its merges. llama.cpp needs at least 32 bytes each.
MAX_STRINGS = 4_194_304
#: The format requires a multiple of 8; writers use 32, or up to a large page for direct reads.
MIN_ALIGNMENT, MAX_ALIGNMENT, DEFAULT_ALIGNMENT = 8, 1024 * 1024, 32
#: Longer arrays and texts are skipped; no value that we use is longer.
MAX_KEPT_ELEMENTS = 512
MAX_KEPT_TEXT_BYTES = 4096
CHUNK_BYTES = 256 * 1024

_ALIGNMENT_KEY = "general.alignment"
_LENGTH = struct.Struct("<Q")
#: In the names of tensors that hold all experts of a layer.
_EXPERTS = "_exps."


class NotAModel(Exception):
    """The file is not a sound GGUF model; the message, for people, says why."""


class _TruncatedModel(NotAModel):
    """The file ends within its header."""


class ValueKind(IntEnum):
    """The format's types of values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_WIDTHS = {
    **dict.fromkeys((ValueKind.UINT8, ValueKind.INT8, ValueKind.BOOL), 1),
    **dict.fromkeys((ValueKind.UINT16, ValueKind.INT16), 2),
    **dict.fromkeys((ValueKind.UINT32, ValueKind.INT32, ValueKind.FLOAT32), 4),
    **dict.fromkeys((ValueKind.UINT64, ValueKind.INT64, ValueKind.FLOAT64), 8),
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """A type of tensor, whose elements ggml stores in blocks."""

    name: str
    block_elements: int
    block_bytes: int

    def bytes_of(self, elements: int) -> int:
        """Return the size of this many elements, rounded up to whole blocks."""
        return -(-elements // self.block_elements) * self.block_bytes


#: By ggml's numbers, without removed ones. `test_gguf_container` compares this with ggml.
TENSOR_TYPES = {
    0: TensorType("f32", 1, 4),
    1: TensorType("f16", 1, 2),
    2: TensorType("q4_0", 32, 18),
    3: TensorType("q4_1", 32, 20),
    6: TensorType("q5_0", 32, 22),
    7: TensorType("q5_1", 32, 24),
    8: TensorType("q8_0", 32, 34),
    9: TensorType("q8_1", 32, 36),
    10: TensorType("q2_K", 256, 84),
    11: TensorType("q3_K", 256, 110),
    12: TensorType("q4_K", 256, 144),
    13: TensorType("q5_K", 256, 176),
    14: TensorType("q6_K", 256, 210),
    15: TensorType("q8_K", 256, 292),
    16: TensorType("iq2_xxs", 256, 66),
    17: TensorType("iq2_xs", 256, 74),
    18: TensorType("iq3_xxs", 256, 98),
    19: TensorType("iq1_s", 256, 50),
    20: TensorType("iq4_nl", 32, 18),
    21: TensorType("iq3_s", 256, 110),
    22: TensorType("iq2_s", 256, 82),
    23: TensorType("iq4_xs", 256, 136),
    24: TensorType("i8", 1, 1),
    25: TensorType("i16", 1, 2),
    26: TensorType("i32", 1, 4),
    27: TensorType("i64", 1, 8),
    28: TensorType("f64", 1, 8),
    29: TensorType("iq1_m", 256, 56),
    30: TensorType("bf16", 1, 2),
    34: TensorType("tq1_0", 256, 54),
    35: TensorType("tq2_0", 256, 66),
    39: TensorType("mxfp4", 32, 17),
    40: TensorType("nvfp4", 64, 36),
    41: TensorType("q1_0", 128, 18),
    42: TensorType("q2_0", 64, 18),
}


@dataclass(frozen=True, slots=True)
class Value:
    #: The type of the value, or of an array's elements.
    kind: ValueKind
    count: int | None
    #: None if skipped, as large arrays, arrays of texts and long texts are.
    raw: bytes | None


#: The name of a tensor's type, and its shape.
StoredTensor: TypeAlias = tuple[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class GgufContainer:
    values: Mapping[str, Value]
    tensors: Mapping[str, StoredTensor]
    tensor_bytes: int
    #: The part of a mixture's experts, which compute a part of the tokens each.
    expert_bytes: int


def read(file: BinaryIO, size: int, *, distinct: str) -> GgufContainer:
    """Read the header of a file of ``size`` bytes. Raises NotAModel. The texts in the array ``distinct`` must be unique.

    Reads at most the header and one chunk, and needs a few times the header's size in memory.
    """
    reader = _GgufReader(file, size)
    _check_version(reader)
    tensor_count = reader.count("tensors", MAX_TENSORS)
    values = _read_pairs(reader, reader.count("pairs", MAX_PAIRS), distinct, {})
    return GgufContainer(values, *_read_tensors(reader, tensor_count, _alignment(values)))


def read_beginning(beginning: bytes) -> dict[str, Value]:
    """Return the pairs that begin in the first bytes of a file. Raises NotAModel."""
    reader, values = _GgufReader(io.BytesIO(beginning), len(beginning)), dict[str, Value]()
    _check_version(reader)
    reader.count("tensors", MAX_TENSORS)
    with suppress(_TruncatedModel):
        _read_pairs(reader, reader.count("pairs", MAX_PAIRS), "", values)
    return values


class _GgufReader:
    """Reads the header sequentially, within its limits."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self._limit = min(size, MAX_HEADER_BYTES)
        #: Data from the file; the part before ``_at`` is consumed.
        self._window = b""
        self._at = 0
        #: The window's position in the file.
        self._start = 0
        self._strings_left = MAX_STRINGS
        file.seek(0)

    @property
    def position(self) -> int:
        return self._start + self._at

    def take(self, count: int) -> bytes:
        if count > len(self._window) - self._at:
            self._fill(count)
        begin = self._at
        self._at += count
        return self._window[begin : self._at]

    def skip(self, count: int) -> None:
        self.require(count)
        self._at += count
        if self._at > len(self._window):
            self._start, self._at, self._window = self.position, 0, b""
            self._file.seek(self._start)

    def require(self, count: int) -> None:
        """Raises NotAModel if fewer bytes are left."""
        if count <= self._limit - self.position:
            return
        if self._limit < self.size:
            raise NotAModel(f"its header is larger than {MAX_HEADER_BYTES >> 20} MiB, or damaged at byte {self.position}")
        raise _TruncatedModel(
            f"it is truncated or damaged: {_shown(count)} bytes are expected at byte {self.position}, but the file has {self.size} bytes"
        )

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def length(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def count(self, what: str, most: int) -> int:
        count = self.length()
        if count > most:
            raise NotAModel(f"it claims {_shown(count)} {what}, but at most {most} are allowed")
        return count

    def kind(self, key: str) -> ValueKind:
        number = self.number(4)
        try:
            return ValueKind(number)
        except ValueError:
            raise NotAModel(f"{key!r} has a value of the unknown type {number}") from None

    def name(self, what: str, most: int) -> str:
        length = self.length()
        if not 0 < length <= most:
            raise NotAModel(f"the name of a {what} has {_shown(length)} bytes, but 1 to {most} are allowed")
        raw = self.take(length)
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise NotAModel(f"the name {raw[:MAX_TENSOR_NAME_BYTES]!r} of a {what} is not UTF-8") from None
        # Above all no zero byte, where llama.cpp ends a name: two names that differ after it would be the same.
        if not name.isprintable():
            raise NotAModel(f"the name {raw[:MAX_TENSOR_NAME_BYTES]!r} of a {what} has unprintable characters")
        return name

    def kept(self, length: int, most: int) -> bytes | None:
        """Return the next bytes; None for more than ``most``, which are skipped."""
        if length <= most:
            return self.take(length)
        self.skip(length)
        return None

    def strings(self, key: str, count: int) -> Iterator[bytes]:
        """Yield the texts of an array. Don't use the reader before the last one: for speed, its position is only updated now and then."""
        if count > self._strings_left:
            raise NotAModel(f"{key!r} claims {_shown(count)} texts, but all arrays together may have {MAX_STRINGS}")
        self._strings_left -= count
        while count:
            window, at, begin = self._window, self._at, self._at + 8
            while count and begin <= len(window) and (end := begin + _LENGTH.unpack_from(window, at)[0]) <= len(window):
                yield window[begin:end]
                count, at, begin = count - 1, end, end + 8
            self._at = at
            if count:
                yield self.take(self.length())
                count -= 1

    def _fill(self, count: int) -> None:
        self.require(count)
        parts = [self._window[self._at :]]
        held = len(parts[0])
        wanted = min(max(count, CHUNK_BYTES), self._limit - self.position)
        while held < count:
            part = self._file.read(wanted - held)
            if not part:
                raise NotAModel(f"it was truncated while it was read: it ends at byte {self.position + held} and had {self.size}")
            parts.append(part)
            held += len(part)
        self._start, self._at, self._window = self.position, 0, b"".join(parts)


def _check_version(reader: _GgufReader) -> None:
    magic = reader.take(min(4, reader.size))
    if magic != b"GGUF":
        raise NotAModel(f"it is not a GGUF file: it starts with {magic!r}")
    version = reader.number(4)
    if version & 0xFFFF == 0 and version:
        raise NotAModel("it is a big-endian GGUF file, for another kind of processor")
    if version not in VERSIONS:
        raise NotAModel(f"it is GGUF version {version}; versions {' and '.join(map(str, VERSIONS))} are supported")


def _read_pairs(reader: _GgufReader, count: int, distinct: str, values: dict[str, Value]) -> dict[str, Value]:
    """Add the pairs to ``values``, arrays of texts before their texts."""
    for _ in range(count):
        key = reader.name("pair", MAX_KEY_BYTES)
        if key in values:
            raise NotAModel(f"it has the key {key!r} twice")
        kind = reader.kind(key)
        if kind is ValueKind.ARRAY:
            _read_array(reader, key, distinct, values)
        else:
            length = reader.length() if kind is ValueKind.STRING else _WIDTHS[kind]
            values[key] = Value(kind, None, reader.kept(length, MAX_KEPT_TEXT_BYTES))
    return values


def _read_array(reader: _GgufReader, key: str, distinct: str, values: dict[str, Value]) -> None:
    kind, count = reader.kind(key), reader.length()
    if kind is ValueKind.ARRAY:
        raise NotAModel(f"{key!r} is an array of arrays, which llama.cpp does not read")
    if kind is not ValueKind.STRING:
        values[key] = Value(kind, count, reader.kept(count * _WIDTHS[kind], MAX_KEPT_ELEMENTS * _WIDTHS[kind]))
        return
    values[key] = Value(kind, count, None)
    seen: set[bytes] = set()
    for number, text in enumerate(reader.strings(key, count)):
        if key == distinct:
            # Like llama.cpp: a text ends at a zero byte, and an empty one gets a unique name.
            word = text.partition(b"\0")[0] or b"[EMPTY_%d]" % number
            if word in seen:
                raise NotAModel(f"{key!r} has {word[:64]!r} twice")
            seen.add(word)


def _alignment(values: dict[str, Value]) -> int:
    value = values.get(_ALIGNMENT_KEY)
    if value is None:
        return DEFAULT_ALIGNMENT
    if value.kind is not ValueKind.UINT32 or value.count is not None or value.raw is None:
        raise NotAModel(f"{_ALIGNMENT_KEY} is not a 32-bit number")
    alignment = int.from_bytes(value.raw, "little")
    if alignment & (alignment - 1) or not MIN_ALIGNMENT <= alignment <= MAX_ALIGNMENT:
        raise NotAModel(f"{_ALIGNMENT_KEY} is {alignment}, but must be a power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT}")
    return alignment


def _read_tensors(reader: _GgufReader, count: int, alignment: int) -> tuple[dict[str, StoredTensor], int, int]:
    """Return the tensors, and the bytes of all and of the experts. Like llama.cpp, it requires them in order and without gaps, so that
    none can overlap."""
    seen: dict[str, StoredTensor] = {}
    total = experts = due = end = 0
    for _ in range(count):
        name = reader.name("tensor", MAX_TENSOR_NAME_BYTES)
        if name in seen:
            raise NotAModel(f"it has the tensor {name!r} twice")
        shape = _read_shape(reader, name)
        stored = _type_of(reader.number(4), shape, name)
        seen[name] = stored.name, shape
        size = stored.bytes_of(math.prod(shape))
        if (offset := reader.length()) != due:
            raise NotAModel(f"the tensor {name!r} is at byte {_shown(offset)} of the tensors, but should be at {_shown(due)}")
        end = due + size
        due = _padded(end, alignment)
        total += size
        experts += size if _EXPERTS in name else 0
    if count and (file_end := _padded(reader.position, alignment) + end) > reader.size:
        raise NotAModel(f"it is truncated or damaged: its tensors end at byte {_shown(file_end)}, but the file has {reader.size} bytes")
    return seen, total, experts


def _read_shape(reader: _GgufReader, name: str) -> tuple[int, ...]:
    dimensions = reader.number(4)
    if not 0 < dimensions <= MAX_DIMENSIONS:
        raise NotAModel(f"the tensor {name!r} has {dimensions} dimensions, but 1 to {MAX_DIMENSIONS} are allowed")
    shape = tuple(reader.length() for _ in range(dimensions))
    if 0 in shape or math.prod(shape) > MAX_ELEMENTS:
        raise NotAModel(f"the tensor {name!r} has the shape {' × '.join(map(_shown, shape))}: no elements, or too many to count")
    return shape


def _type_of(number: int, shape: tuple[int, ...], name: str) -> TensorType:
    stored = TENSOR_TYPES.get(number)
    if stored is None:
        raise NotAModel(f"the tensor {name!r} has the unknown type {number}: the file is damaged, or newer than this llama.cpp")
    if shape[0] % stored.block_elements:
        raise NotAModel(f"the tensor {name!r} has rows of {shape[0]}, but {stored.name} stores blocks of {stored.block_elements}")
    return stored


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _shown(number: int) -> str:
    """Shorten a huge number, which comes from damage."""
    return str(number) if number < 1 << 53 else f"about 2^{number.bit_length() - 1}"
