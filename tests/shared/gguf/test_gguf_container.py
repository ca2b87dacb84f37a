import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.gguf import gguf_container
from shared.gguf.gguf_container import GgufContainer, NotAModel, Value, ValueKind
from tests import gguf_by_llama, gguf_files
from tests.gguf_files import Part, Role, Tensor, Typed, array, single, text, texts

ONE = Tensor("one", (8,), "f32")
TWO = Tensor("two", (32, 4), "q8_0")
PAIRS = {"a.text": text("hello"), "a.number": single("u32", 7), "a.list": texts(["a", "b"])}


def read(raw: bytes, size: int | None = None) -> GgufContainer:
    return gguf_container.read(io.BytesIO(raw), len(raw) if size is None else size, distinct="a.list")


def whole(pairs: dict[str, Typed] = PAIRS, tensors: tuple[Tensor, ...] = (ONE, TWO), *, version: int = 3) -> bytes:
    return gguf_files.joined(gguf_files.file(pairs, tensors, version=version))


def changed(role: Role, number: int, raw: bytes) -> bytes:
    """Return the whole file with other bytes in the ``number``-th part of this role."""
    parts = gguf_files.file(PAIRS, (ONE, TWO))
    places = [at for at, part in enumerate(parts) if part.role is role]
    parts[places[number]] = Part(role, raw)
    return gguf_files.joined(parts)


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


@pytest.mark.parametrize("version", gguf_container.VERSIONS)
def test_valid_file_is_read(version: int) -> None:
    assert read(whole(version=version)) == GgufContainer(
        {
            "a.text": Value(ValueKind.STRING, None, b"hello"),
            "a.number": Value(ValueKind.UINT32, None, u32(7)),
            "a.list": Value(ValueKind.STRING, 2, None),
        },
        {"one": ("f32", (8,)), "two": ("q8_0", (32, 4))},
        tensor_bytes=32 + 136,
        expert_bytes=0,
    )


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param(b"", "not a GGUF file", id="an empty file"),
        pytest.param(b"GG", "not a GGUF file", id="half a magic number"),
        pytest.param(b"PK\3\4" + bytes(60), "not a GGUF file", id="another format"),
        pytest.param(changed(Role.VERSION, 0, b"\0\0\0\3"), "big-endian", id="made for a big-endian processor"),
        pytest.param(changed(Role.VERSION, 0, u32(1)), "version 1", id="too old"),
        pytest.param(changed(Role.VERSION, 0, u32(4)), "version 4", id="too new"),
        pytest.param(changed(Role.VERSION, 0, u32(0)), "version 0", id="no version"),
        pytest.param(changed(Role.COUNT, 0, u64(1 << 63)), r"2\^63 tensors", id="2^63 tensors"),
        pytest.param(changed(Role.COUNT, 0, u64(65_537)), "65537 tensors", id="a tensor too many"),
        pytest.param(changed(Role.COUNT, 1, u64(1 << 63)), r"2\^63 pairs", id="2^63 pairs"),
        pytest.param(changed(Role.COUNT, 1, u64(65_537)), "65537 pairs", id="a pair too many"),
        pytest.param(changed(Role.COUNT, 1, u64(65_536)), "the name of a pair has 0 bytes", id="more pairs than are in the file"),
        pytest.param(changed(Role.LENGTH, 0, u64(1 << 63)), r"2\^63 bytes, but 1 to 256", id="a key of 2^63 bytes"),
        pytest.param(changed(Role.LENGTH, 0, u64(0)), "0 bytes, but 1 to 256", id="an empty key"),
        pytest.param(whole({"a" * 257: text("x")}), "257 bytes", id="a key that is too long"),
        pytest.param(changed(Role.TEXT, 0, b"a.\xffext"), "not UTF-8", id="a key that is no text"),
        pytest.param(changed(Role.TEXT, 0, b"a.t\0xt"), "unprintable characters", id="a zero in a key"),
        pytest.param(whole({"a.text": text("x"), "a.texx": text("x")}).replace(b"a.texx", b"a.text"), "'a.text' twice", id="a key twice"),
        pytest.param(changed(Role.KIND, 0, u32(13)), "'a.text' has a value of the unknown type 13", id="an unknown type"),
        pytest.param(changed(Role.KIND, 0, u32(0xFFFF_FFFF)), "unknown type 4294967295", id="a type of -1"),
        pytest.param(changed(Role.LENGTH, 1, u64(1 << 63)), r"2\^63 bytes are expected", id="a text of 2^63 bytes"),
        pytest.param(changed(Role.LENGTH, 1, u64((1 << 64) - 1)), r"2\^63 bytes are expected", id="a text of -1 bytes"),
        pytest.param(changed(Role.KIND, 3, u32(9)), "array of arrays", id="an array of arrays"),
        pytest.param(changed(Role.KIND, 3, u32(14)), "unknown type 14", id="an array of an unknown type"),
        pytest.param(changed(Role.ELEMENTS, 0, u64(1 << 61)), r"2\^61 texts", id="an array of 2^61 texts"),
        pytest.param(changed(Role.ELEMENTS, 0, u64(4_194_305)), "4194305 texts", id="a text too many"),
        pytest.param(changed(Role.ELEMENTS, 0, u64(4_194_304)), "truncated or damaged", id="more texts than are in the file"),
        pytest.param(changed(Role.LENGTH, 4, u64(1 << 62)), r"2\^62 bytes are expected", id="a text of 2^62 bytes in an array"),
        pytest.param(whole({"a.list": texts(["x", "y", "x"])}), "'a.list' has b'x' twice", id="a word twice in the vocabulary"),
        pytest.param(whole({"a.list": texts(["x\0y", "x\0z"])}), "'a.list' has b'x' twice", id="words that llama.cpp takes for one"),
        pytest.param(whole({"a.list": texts(["[EMPTY_1]", ""])}), "has b'\\[EMPTY_1\\]' twice", id="the name of an empty word"),
        pytest.param(whole({"general.alignment": single("u32", 0)}), "is 0, but must be a power of two", id="alignment 0"),
        pytest.param(whole({"general.alignment": single("u32", 3)}), "is 3, but must be a power of two", id="alignment 3"),
        pytest.param(whole({"general.alignment": single("u32", 4)}), "power of two from 8", id="a small alignment"),
        pytest.param(whole({"general.alignment": single("u32", 1 << 21)}), "power of two from 8 to 1048576", id="a large alignment"),
        pytest.param(whole({"general.alignment": single("u64", 1 << 40)}), "not a 32-bit number", id="alignment 2^40"),
        pytest.param(whole({"general.alignment": array("u32", [32])}), "not a 32-bit number", id="two alignments"),
        pytest.param(whole({"general.alignment": text("32 b")}), "not a 32-bit number", id="an alignment of four letters"),
        pytest.param(whole({}, (ONE, ONE)), "the tensor 'one' twice", id="a tensor twice"),
        pytest.param(whole({}, (Tensor("x" * 64, (8,), "f32"),)), "64 bytes, but 1 to 63", id="a tensor's name that is too long"),
        pytest.param(changed(Role.TEXT, -2, b"o\0e"), "unprintable characters", id="a zero in a tensor's name"),
        pytest.param(changed(Role.DIMENSIONS, 0, u32(0)), "0 dimensions", id="a tensor without dimensions"),
        pytest.param(changed(Role.DIMENSIONS, 0, u32(5)), "5 dimensions", id="five dimensions"),
        pytest.param(changed(Role.DIMENSIONS, 0, u32(0xFFFF_FFFF)), "4294967295 dimensions", id="-1 dimensions"),
        pytest.param(changed(Role.SHAPE, 0, u64(0)), "the shape 0", id="no elements"),
        pytest.param(changed(Role.SHAPE, 0, u64(1 << 63)), r"the shape about 2\^63", id="a negative dimension"),
        pytest.param(changed(Role.SHAPE, 2, u64(1 << 58)), r"the shape 32 × about 2\^58", id="elements that overflow 63 bits"),
        pytest.param(changed(Role.SHAPE, 2, u64((1 << 57) + 4)), "truncated or damaged", id="bytes that would overflow 64 bits"),
        pytest.param(changed(Role.SHAPE, 1, u64(33)), "rows of 33, but q8_0 stores blocks of 32", id="a row of broken blocks"),
        pytest.param(changed(Role.STORAGE, 0, u32(4)), "unknown type 4", id="a type that ggml has no more"),
        pytest.param(changed(Role.STORAGE, 0, u32(43)), "unknown type 43", id="a type that ggml has not yet"),
        pytest.param(changed(Role.OFFSET, 0, u64(1)), "is at byte 1 .* should be at 0", id="an offset that is not aligned"),
        pytest.param(changed(Role.OFFSET, 1, u64(0)), "is at byte 0 .* should be at 32", id="tensors that overlap"),
        pytest.param(changed(Role.OFFSET, 1, u64(64)), "is at byte 64 .* should be at 32", id="tensors with a gap"),
        pytest.param(changed(Role.OFFSET, 1, u64(1 << 63)), r"at byte about 2\^63", id="an offset beyond the file"),
        pytest.param(whole()[: -len(bytes(24)) - 1], "its tensors end at byte", id="the last weight is missing"),
    ],
)
def test_invalid_file_is_refused_with_a_message(raw: bytes, message: str) -> None:
    with pytest.raises(NotAModel, match=message):
        read(raw)


def test_padding_may_be_missing_at_the_end() -> None:
    padding = -TWO.bytes % 32
    assert padding
    assert read(whole({}, (ONE, TWO))[:-padding]).tensor_bytes == 168


def test_weights_are_never_read() -> None:
    header = gguf_files.joined(gguf_files.header({}, (ONE, TWO)))
    assert len(read(header, size=len(header) + 168).tensors) == 2


def test_file_that_shrinks_is_refused() -> None:
    raw = whole()
    with pytest.raises(NotAModel, match="was truncated while it was read: it ends at byte 100"):
        read(raw[:100], len(raw))


def test_header_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = whole({"a.text": text("x" * 2000)})
    assert len(read(raw).tensors) == 2
    monkeypatch.setattr(gguf_container, "MAX_HEADER_BYTES", 1024 * 1024 - 1)
    assert len(read(raw).tensors) == 2
    monkeypatch.setattr(gguf_container, "MAX_HEADER_BYTES", 2000)
    with pytest.raises(NotAModel, match="its header is larger than"):
        read(raw)


def test_strings_are_counted_over_all_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_container, "MAX_STRINGS", 3)
    assert set(read(whole({"x": texts(["a", "b"]), "y": texts(["c"])})).values) == {"x", "y"}
    with pytest.raises(NotAModel, match="'y' claims 2 texts"):
        read(whole({"x": texts(["a", "b"]), "y": texts(["c", "d"])}))


def test_large_values_are_not_kept() -> None:
    values = read(whole({"x": text("a" * 4097), "y": array("u8", [1] * 513), "a.number": single("u8", 9)})).values
    assert values == {
        "x": Value(ValueKind.STRING, None, None),
        "y": Value(ValueKind.UINT8, 513, None),
        "a.number": Value(ValueKind.UINT8, None, b"\x09"),
    }


class CountingFile(io.BytesIO):
    """Counts the bytes that are read, and refuses to read everything at once."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self.reads = self.bytes_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size > 0
        got = super().read(size)
        self.reads += 1
        self.bytes_read += len(got)
        return got


def test_large_vocabulary_is_read_once_and_in_chunks() -> None:
    """As large as Gemma's, including merges."""
    count = 262_144
    tokens = b"".join(u64(6) + b"%06d" % number for number in range(count))
    pairs = {
        "a.list": [*texts([])[:2], Part(Role.ELEMENTS, u64(count)), Part(Role.VALUE, tokens)],
        "a.merges": [*texts([])[:2], Part(Role.ELEMENTS, u64(2 * count)), Part(Role.VALUE, tokens * 2)],
        "a.scores": array("f32", [0.0] * count),
    }
    header = gguf_files.joined(gguf_files.header(pairs, (ONE,)))
    file = CountingFile(header + bytes(4 * gguf_container.CHUNK_BYTES))
    assert gguf_container.read(file, len(header) + 4 * gguf_container.CHUNK_BYTES, distinct="a.list").values["a.list"].count == count
    assert file.bytes_read <= len(header) + gguf_container.CHUNK_BYTES
    assert file.reads <= len(header) // gguf_container.CHUNK_BYTES + 2


def test_tensor_types_match_ggml() -> None:
    ours = {number: (stored.block_elements, stored.block_bytes) for number, stored in gguf_container.TENSOR_TYPES.items()}
    assert ours == gguf_by_llama.block_sizes()


# --- round trips ----------------------------------------------------------------------------------------------------

NUMBERS = {
    "u8": (ValueKind.UINT8, st.integers(0, 255)),
    "i16": (ValueKind.INT16, st.integers(-(1 << 15), (1 << 15) - 1)),
    "u32": (ValueKind.UINT32, st.integers(0, (1 << 32) - 1)),
    "f32": (ValueKind.FLOAT32, st.floats(width=32)),
    "bool": (ValueKind.BOOL, st.booleans()),
    "i64": (ValueKind.INT64, st.integers(-(1 << 63), (1 << 63) - 1)),
    "f64": (ValueKind.FLOAT64, st.floats()),
}
SHAPES = st.lists(st.integers(1, 5), max_size=3).map(lambda rest: (32, *rest))


@st.composite
def a_pair(draw: st.DrawFn) -> tuple[Typed, Value]:
    name = draw(st.sampled_from(sorted(NUMBERS)))
    kind, numbers = NUMBERS[name]
    match draw(st.sampled_from(["number", "numbers", "text", "texts"])):
        case "number":
            typed = single(name, draw(numbers))
            return typed, Value(kind, None, typed[-1].raw)
        case "numbers":
            typed = array(name, draw(st.lists(numbers, max_size=5)))
            return typed, Value(kind, int.from_bytes(typed[-2].raw, "little"), typed[-1].raw)
        case "text":
            raw = draw(st.binary(max_size=20))
            return text(raw), Value(ValueKind.STRING, None, raw)
        case _:
            some = draw(st.lists(st.binary(max_size=5), max_size=5))
            return texts(some), Value(ValueKind.STRING, len(some), None)


@given(
    pairs=st.dictionaries(st.from_regex(r"[a-z_]{1,9}\.[a-z_]{1,9}", fullmatch=True), a_pair(), max_size=6),
    shapes=st.lists(st.tuples(SHAPES, st.sampled_from(sorted(gguf_files.STORAGE))), max_size=4),
    chunk=st.integers(1, 64),
)
def test_written_values_are_read_back(pairs: dict[str, tuple[Typed, Value]], shapes: list[tuple[tuple[int, ...], str]], chunk: int) -> None:
    """At every chunk size, so that a chunk's border cuts each part of the format once."""
    tensors = [Tensor(f"tensor {number}", shape, storage) for number, (shape, storage) in enumerate(shapes)]
    raw = gguf_files.joined(gguf_files.file({key: typed for key, (typed, _) in pairs.items()}, tensors))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_container, "CHUNK_BYTES", chunk)
        container = read(raw)
    assert container.values == {key: value for key, (_, value) in pairs.items()}
    assert len(container.tensors) == len(tensors)
    assert container.tensor_bytes == sum(tensor.bytes for tensor in tensors)
