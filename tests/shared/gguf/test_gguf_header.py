import io
from dataclasses import replace

import pytest

from services.inference.models import model_discovery
from shared.gguf import gguf_header
from shared.gguf.gguf_header import GgufHeader, NotAModel, PoolingKind
from tests import gguf_files
from tests.gguf_files import Tensor, Typed, array, single, text, texts

LLAMA = {
    "general.architecture": text("llama"),
    "llama.context_length": single("u32", 4096),
    "llama.block_count": single("u32", 2),
    "llama.embedding_length": single("u32", 64),
    "llama.attention.head_count": single("u32", 4),
}
SOME = (Tensor("token_embd.weight", (64, 5), "f16"), Tensor("output_norm.weight", (64,), "f32"))


def read(pairs: dict[str, Typed], tensors: tuple[Tensor, ...] = SOME) -> GgufHeader:
    raw = gguf_files.joined(gguf_files.file(pairs, tensors))
    return gguf_header.read_header(io.BytesIO(raw), len(raw))


def llama(**more: Typed) -> GgufHeader:
    """Return a small model's header; `__` in a key of the architecture stands for `.`."""
    return read(LLAMA | {f"llama.{key.replace('__', '.')}": value for key, value in more.items()})


def u32(number: int) -> Typed:
    return single("u32", number)


def test_header_of_the_packaged_model() -> None:
    path = model_discovery.installed()
    with path.open("rb") as file:
        header = gguf_header.read_header(file, path.stat().st_size)
    assert header == GgufHeader(
        architecture="llama",
        context_length=8192,
        block_count=30,
        embedding_length=576,
        head_counts=(9,) * 30,
        kv_head_counts=(3,) * 30,
        key_length=64,
        value_length=64,
        vocabulary_size=49_152,
        pooling_type=None,
        tensor_bytes=96_576_768,
        split_count=1,
        split_number=0,
        matrix_types=frozenset({"q4_1", "q8_0"}),
    )
    assert gguf_header.kv_bytes_per_token(header) == 30 * 3 * (64 + 64) * 2


def test_missing_facts_are_not_made_up() -> None:
    header = read({"general.architecture": text("llama")}, ())
    assert header.context_length is None
    assert header.block_count is None
    assert header.head_counts == header.kv_head_counts == ()
    assert header.key_length is None
    assert header.vocabulary_size is None
    assert header.tensor_bytes == 0
    assert gguf_header.kv_bytes_per_token(header) is None


def test_tensors_are_summed_up() -> None:
    assert llama().tensor_bytes == 64 * 5 * 2 + 64 * 4


def test_vocabulary_is_counted() -> None:
    assert read(LLAMA | {"tokenizer.ggml.tokens": texts(["a", "b", "c"])}).vocabulary_size == 3


def test_blocks_may_differ() -> None:
    header = llama(attention__head_count=array("u32", [4, 2]), attention__head_count_kv=array("i32", [1, 0]))
    assert header.head_counts == (4, 2)
    assert header.kv_head_counts == (1, 0)


def test_heads_without_sharing_have_their_own_keys() -> None:
    assert llama().kv_head_counts == (4, 4)


def test_heads_may_be_wider_than_their_share() -> None:
    header = llama(attention__key_length=u32(128), attention__value_length=u32(96))
    assert (header.key_length, header.value_length) == (128, 96)


def test_parts_of_a_split_model_are_recognized() -> None:
    split = {"split.no": single("u16", 1), "split.count": single("u16", 3)}
    later = read(split)
    assert later.architecture is None
    assert (later.split_number, later.split_count) == (1, 3)
    assert later.tensor_bytes == llama().tensor_bytes
    first = read(LLAMA | split | {"split.no": single("u16", 0)}, ())
    assert (first.split_number, first.split_count) == (0, 3)


@pytest.mark.parametrize("pooling", [None, *PoolingKind])
def test_pooling_of_an_embedding_model_is_read(pooling: PoolingKind | None) -> None:
    pairs = {"general.architecture": text("bert")}
    if pooling is not None:
        pairs["bert.pooling_type"] = u32(pooling)
    assert read(pairs).pooling_type == pooling


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        pytest.param({}, "does not name the architecture", id="no architecture"),
        pytest.param({"general.architecture": u32(1)}, "general.architecture is not a text", id="an architecture that is a number"),
        pytest.param(
            {"general.architecture": text(b"ll\xffma")}, "general.architecture is not UTF-8", id="an architecture that is not a text"
        ),
        pytest.param(LLAMA | {"llama.rope.scaling.type": text("x" * 4097)}, "is not a text, or has more than 4096", id="a text of pages"),
        pytest.param(LLAMA | {"llama.rope.scaling.type": texts(["x"])}, "scaling.type is not a text", id="several texts"),
        pytest.param(
            LLAMA | {"llama.context_length": single("u64", 4096)}, "is not a number of the type uint32", id="a number that is too wide"
        ),
        pytest.param(LLAMA | {"llama.context_length": array("u32", [1, 2])}, "is not a number of the type uint32", id="several contexts"),
        pytest.param(LLAMA | {"llama.context_length": u32(0)}, "is 0, but must be from 1", id="no context"),
        pytest.param(LLAMA | {"llama.context_length": u32((1 << 32) - 1)}, "context_length is 4294967295", id="a context of -1"),
        pytest.param(LLAMA | {"llama.embedding_length": u32(1 << 31)}, "embedding_length is 2147483648", id="a negative width"),
        pytest.param(LLAMA | {"llama.attention.head_count": array("i32", [4])}, "not an array of 2", id="heads of one block of two"),
        pytest.param(LLAMA | {"llama.attention.head_count": array("i64", [4, 4])}, "not an array of 2", id="heads that are too wide"),
        pytest.param(LLAMA | {"llama.attention.head_count": array("i32", [4, -4])}, "head_count is 4294967292", id="negative heads"),
        pytest.param(LLAMA | {"tokenizer.ggml.tokens": array("u32", [1])}, "tokens is not an array of texts", id="words that are numbers"),
        pytest.param(LLAMA | {"tokenizer.ggml.tokens": text("a")}, "tokens is not an array", id="one word"),
        pytest.param(LLAMA | {"tokenizer.ggml.tokens": texts(["a", "b", "a"])}, "has b'a' twice", id="a word twice"),
        pytest.param(
            LLAMA | {"split.count": u32(2)}, "split.count is not a number of the type uint16", id="a count of parts that is too wide"
        ),
        pytest.param(LLAMA | {"split.no": single("u16", 2), "split.count": single("u16", 2)}, "split.no is 2", id="the third of two parts"),
    ],
)
def test_impossible_facts_are_refused(pairs: dict[str, Typed], message: str) -> None:
    with pytest.raises(NotAModel, match=message):
        read(pairs)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        pytest.param({"block_count": u32(0)}, "block_count is 0, but must be from 1 to 512", id="no layers"),
        pytest.param({"block_count": u32(513)}, "block_count is 513", id="a layer too many"),
        pytest.param({"nextn_predict_layers": u32(3)}, "nextn_predict_layers is 3", id="more layers that look ahead than layers"),
        pytest.param(
            {"rope.scaling.type": text("Linear")}, "'Linear', but must be one of none, linear", id="an unknown stretch of positions"
        ),
        pytest.param({"pooling_type": u32(5)}, "pooling_type is 5", id="an unknown pooling"),
        pytest.param({"expert_count": u32(1025)}, "expert_count is 1025", id="an expert too many"),
        pytest.param({"expert_count": u32(4)}, "0 of 4 experts in use", id="idle experts"),
        pytest.param({"expert_used_count": u32(2)}, "2 of 0 experts in use", id="experts that are not there"),
        pytest.param({"expert_count": u32(4), "expert_used_count": array("i32", [1, 5])}, "5 of 4", id="too many in one block"),
        pytest.param({"expert_group_count": u32(1)}, "1 groups of 0 experts", id="groups without experts"),
        pytest.param(
            {"expert_count": u32(4), "expert_used_count": u32(1), "expert_group_count": u32(4)}, "4 groups of 4", id="groups of one expert"
        ),
        pytest.param(
            {"expert_count": u32(8), "expert_used_count": u32(1), "expert_group_count": u32(3), "expert_group_used_count": u32(1)},
            "1 of 3 groups of 8",
            id="groups of different size",
        ),
        pytest.param(
            {"expert_count": u32(8), "expert_used_count": u32(1), "expert_group_count": u32(4)}, "0 of 4 groups", id="no group in use"
        ),
    ],
)
def test_values_that_would_crash_llama_cpp_are_refused(more: dict[str, Typed], message: str) -> None:
    with pytest.raises(NotAModel, match=message):
        read(LLAMA | {f"llama.{key}": value for key, value in more.items()})


def test_mixture_of_experts_is_read() -> None:
    """The numbers are those of DeepSeek V3."""
    counts = {"expert_count": 256, "expert_used_count": 8, "expert_group_count": 8, "expert_group_used_count": 4}
    assert llama(**{key: u32(number) for key, number in counts.items()}).architecture == "llama"


def test_zero_experts_are_accepted_where_llama_cpp_accepts_them() -> None:
    with pytest.raises(NotAModel, match="0 of 1 experts"):
        llama(expert_count=u32(1))
    assert read({"general.architecture": text("hunyuan-dense"), "hunyuan-dense.expert_count": u32(1)}).block_count is None


@pytest.mark.parametrize(
    ("type_k", "type_v", "expected"),
    [
        pytest.param("f16", "f16", 2 * 2 * (16 + 16) * 2, id="half precision"),
        pytest.param("f32", "f16", 2 * 2 * (16 * 4 + 16 * 2), id="keys in full"),
        pytest.param("q8_0", "q4_0", 2 * (34 + 18), id="quantised, one block for each layer"),
    ],
)
def test_kv_bytes_per_token(type_k: str, type_v: str, expected: int) -> None:
    header = llama(attention__head_count_kv=u32(2))
    assert gguf_header.kv_bytes_per_token(header, type_k, type_v) == expected


def test_only_attention_blocks_need_kv_memory() -> None:
    header = llama(attention__head_count_kv=array("i32", [0, 1]))
    assert gguf_header.kv_bytes_per_token(header) == (16 + 16) * 2


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param(replace(llama(), architecture="bert"), 0, id="an encoder keeps nothing"),
        pytest.param(replace(llama(), kv_head_counts=(0, 0)), None, id="a recurrent model's state is no matter of tokens"),
        pytest.param(replace(llama(), key_length=None), None, id="an unknown width"),
    ],
)
def test_unknown_kv_size_is_not_guessed(header: GgufHeader, expected: int | None) -> None:
    assert gguf_header.kv_bytes_per_token(header) == expected
