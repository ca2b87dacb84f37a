import json
import math
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.remote_servers.worker.rules import text_answers
from features.remote_servers.worker.rules.event_stream import UNREADABLE, BadStream
from features.remote_servers.worker.rules.text_answers import BATCH_TEXTS, EmbeddingAssembly, EmbeddingReply
from shared import errors
from shared.api.embedding import MAX_DIMENSIONS, Embed, Embedded
from shared.types import ModelName
from tests.services.inference.vector_reader import texts_for

OPENAI, OLLAMA = text_answers.openai_embedding("m", ("a",)), text_answers.ollama_embedding("m", ("a",), keep=None)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def job(*texts: str, dimensions: int | None = None) -> Embed:
    return texts_for(ModelName("m"), texts, dimensions)


def unpacked(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(vector) // 4}f", vector)


def test_the_bodies_say_what_the_servers_would_do_otherwise() -> None:
    assert json.loads(text_answers.ollama_embedding("m", ("a", "b"), keep=None).body) == {
        "model": "m",
        "input": ["a", "b"],
        "truncate": False,
    }
    assert json.loads(text_answers.ollama_embedding("m", ("a",), keep="10m").body)["keep_alive"] == "10m"
    assert json.loads(text_answers.openai_embedding("m", ("a",)).body) == {"model": "m", "input": ["a"], "encoding_format": "float"}


def test_token_ids_are_passed_on_to_openai_and_refused_for_ollama() -> None:
    assert json.loads(text_answers.openai_embedding("m", ((1, 2), (3,))).body)["input"] == [[1, 2], [3]]
    with pytest.raises(errors.BadRequest, match="Ollama does not support token ids"):
        text_answers.ollama_embedding("m", ("a", (1, 2)), keep=None)


def test_openais_numbers_give_the_order() -> None:
    data = [{"index": 2, "embedding": [3]}, {"embedding": [1.0]}, {"index": 1, "embedding": [2e0], "object": "embedding"}]
    answered = OPENAI.read(json.dumps({"data": data, "usage": {"prompt_tokens": 7, "total_tokens": 9}}).encode())
    assert answered == EmbeddingReply(((1.0,), (2.0,), (3.0,)), 7)


@pytest.mark.parametrize("usage", [None, 3, [], {"prompt_tokens": None}, {}])
def test_vectors_without_usage_are_vectors(usage: object) -> None:
    content = json.dumps({"data": [{"index": 0, "embedding": [1]}], "usage": usage}).encode()
    assert OPENAI.read(content) == EmbeddingReply(((1.0,),), None)


@pytest.mark.parametrize("indices", [(1, 2), (0, 0), (0, 2), (-1, 0), (10**30, 0), (0.5, 0), ("0", "1")])
def test_numbers_that_give_no_order_are_refused(indices: tuple[object, ...]) -> None:
    content = json.dumps({"data": [{"index": index, "embedding": [1.0]} for index in indices]}).encode()
    with pytest.raises((BadStream, msgspec.MsgspecError)):
        OPENAI.read(content)


@pytest.mark.parametrize(
    "vector", ["[NaN]", "[Infinity]", "[1e999]", "[null]", '["1"]', '"AACAPw=="', "[[1.0]]", "1", "{}", "[true]", "[1"]
)
def test_what_is_no_vector_is_refused(vector: str) -> None:
    with pytest.raises(UNREADABLE):
        OLLAMA.read(f'{{"embeddings": [{vector}]}}'.encode())
    with pytest.raises(UNREADABLE):
        OPENAI.read(f'{{"data": [{{"index": 0, "embedding": {vector}}}]}}'.encode())


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=100), st.sampled_from([None, 1, 2, 3]))
def test_every_vector_is_one_long_and_in_its_place(vectors: list[list[float]], dimensions: int | None) -> None:
    gathering = EmbeddingAssembly(job(*("ab",) * len(vectors), dimensions=dimensions))
    found: list[bytes] = []
    try:
        for texts in gathering.batches():
            assert len(texts) <= BATCH_TEXTS
            some = vectors[len(found) : len(found) + len(texts)]
            found += gathering.take(texts, EmbeddingReply(tuple(map(tuple, some)), 2 * len(texts)))
    except errors.Unavailable as error:
        (number,) = [n for n in range(len(vectors)) if error.message.endswith(f"input[{n}]")]
        length = math.hypot(*vectors[number][:dimensions])
        assert length == 0 or not math.isfinite(length)
        return
    assert gathering.embedded == Embedded(dimensions or 3, 2 * len(vectors))
    for vector, given_vector in zip(found, vectors, strict=True):
        length = math.hypot(*given_vector[:dimensions])
        assert unpacked(vector) == pytest.approx([number / length for number in given_vector[:dimensions]], abs=1e-6)
        assert math.hypot(*unpacked(vector)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        pytest.param(((1.0,),), "1 vectors for 2 texts", id="too few"),
        pytest.param(((1.0,),) * 3, "3 vectors for 2 texts", id="too many"),
        pytest.param(((1.0,), (1.0, 2.0)), r"a vector of 2 numbers for input\[1\]", id="of two lengths"),
        pytest.param(((), ()), r"a vector of 0 numbers for input\[0\]", id="empty"),
        pytest.param(((1.0,) * (MAX_DIMENSIONS + 1),) * 2, r"a vector of 16385 numbers for input\[0\]", id="too long"),
    ],
)
def test_vectors_that_cannot_be_the_texts_are_refused(vectors: tuple[tuple[float, ...], ...], said: str) -> None:
    with pytest.raises(BadStream, match=said):
        EmbeddingAssembly(job("a", "b")).take(("a", "b"), EmbeddingReply(vectors, 2))


def test_a_later_batch_must_be_of_the_same_model() -> None:
    gathering = EmbeddingAssembly(job(*"abc"))
    gathering.take(("a",), EmbeddingReply(((1.0, 2.0),), 1))
    with pytest.raises(BadStream, match=r"a vector of 3 numbers for input\[1\]"):
        gathering.take(("b",), EmbeddingReply(((1.0, 2.0, 3.0),), 1))


def test_more_dimensions_than_there_are_are_refused_as_a_model_here_does() -> None:
    with pytest.raises(errors.BadRequest, match="dimensions is 3; this model's vectors have 2"):
        EmbeddingAssembly(job("a", dimensions=3)).take(("a",), EmbeddingReply(((1.0, 2.0),), 1))


def test_counts_are_believed_or_made_up_for_batch_by_batch() -> None:
    gathering = EmbeddingAssembly(job("one two", "three", "four five six"))
    for text, said in (("one two", 3), ("three", None), ("four five six", 10**9)):
        gathering.take((text,), EmbeddingReply(((1.0,),), said))
    assert (gathering.embedded, gathering.recounted) == (Embedded(1, 3 + 1 + 3), 2)
