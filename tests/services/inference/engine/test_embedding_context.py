"""Vectors of real models: SmolLM2, which is causal with mean pooling, and a tiny bidirectional model."""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import llama_cpp.llama_cpp as native
import pytest

from services.inference.engine import engine_messages, llama_model
from services.inference.engine.embedding_context import EmbeddingContext
from services.inference.engine.embedding_loop import EmbeddingLoop
from services.inference.engine.engine_messages import EmbeddingTurn, EmbedTexts, GenerationAccepted, GenerationRefused, PreparedPrompt
from services.inference.engine.model_loading import NativeLog
from services.inference.engine.special_tokens import SpecialTokens
from services.inference.models import model_discovery
from shared import errors
from shared.api.embedding import EmbeddingInput
from shared.gguf.gguf_header import PoolingKind
from tests.services.inference.engine import bert_file
from tests.services.inference.vector_reader import of_one_text

CAT, KITTEN, MARKETS = "The cat sat on the mat.", "A kitten rested on the rug.", "Stock markets fell sharply on Tuesday."
LONG = "All work and no play makes Jack a dull boy. " * 12
CONTEXT = 256

Vector = tuple[float, ...]


@contextmanager
def loaded(path: Path, context_tokens: int) -> Iterator[llama_model.LlamaModel]:
    with llama_model.opened(engine_messages.LoadCommand(str(path), 1, context_tokens, 1, 0), lambda _progress: None) as model:
        yield model


@pytest.fixture(scope="module")
def smollm2() -> Iterator[llama_model.LlamaModel]:
    with loaded(model_discovery.packaged(), CONTEXT) as model:
        yield model


def embed(
    embedder: EmbeddingContext, *inputs: EmbeddingInput, dimensions: int | None = None, query: str | None = None
) -> tuple[int, list[Vector]]:
    """Return the number of tokens, and the vectors. Raises the refusal of the loop."""
    loop, tokens = EmbeddingLoop(embedder), 0
    vectors: list[Vector] = []
    command = EmbedTexts(1, inputs, dimensions, query)
    loop.measure(command)
    reports: list[GenerationAccepted | GenerationRefused | EmbeddingTurn] = [loop.begin(command, loop.tokenize(command))]
    while not loop.idle:
        reports += loop.turn(None)
    for report in reports:
        match report:
            case GenerationAccepted():
                tokens = report.prompt_tokens
            case GenerationRefused():
                raise errors.from_problem(report.problem)
            case EmbeddingTurn():
                vectors += [struct.unpack(f"<{len(it) // 4}f", it) for one in report.vectors for it in one.vectors]
    return tokens, vectors


def nearness(one: Vector, other: Vector) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_vector_does_not_depend_on_the_batch(smollm2: llama_model.LlamaModel) -> None:
    _, (alone,) = embed(smollm2.embedder, CAT)
    assert len(alone) == smollm2.embedder.dimensions == 576
    assert math.hypot(*alone) == pytest.approx(1, abs=1e-6)
    for company in ((LONG, CAT, KITTEN), (MARKETS, LONG, CAT), ("Hi", CAT, "a", "b")):
        _, vectors = embed(smollm2.embedder, *company)
        assert of_one_text(vectors[company.index(CAT)], alone)


def test_similar_texts_have_similar_vectors_in_order(smollm2: llama_model.LlamaModel) -> None:
    _, (cat, kitten, markets) = embed(smollm2.embedder, CAT, KITTEN, MARKETS)
    assert nearness(cat, kitten) > max(nearness(cat, markets), nearness(kitten, markets)) + 0.1
    _, turned = embed(smollm2.embedder, MARKETS, CAT, KITTEN)
    assert all(map(of_one_text, turned, (markets, cat, kitten)))


@pytest.mark.nightly("long")
def test_text_computed_in_pieces_has_the_same_vector(smollm2: llama_model.LlamaModel) -> None:
    vectors = []
    # Include step sizes that don't divide anything evenly.
    for step_tokens in (7, 33, 100, CONTEXT):
        embedder = EmbeddingContext(smollm2._model, context_tokens=CONTEXT, step_tokens=step_tokens, threads=1, log=NativeLog())
        try:
            vectors += embed(embedder, LONG)[1]
        finally:
            embedder.free()
    for cut in vectors[:-1]:
        assert of_one_text(cut, vectors[-1])


def test_tokens_are_counted_by_the_tokenizer_and_special_tokens_are_plain_text(smollm2: llama_model.LlamaModel) -> None:
    spelled = "<|im_start|>system"
    tokens, vectors = embed(smollm2.embedder, CAT, "é😀", spelled)
    ids = [
        smollm2._vocabulary.tokens_of(SpecialTokens(smollm2._vocabulary.spellings).mark(text), context_tokens=CONTEXT)
        for text in (CAT, "é😀", spelled)
    ]
    assert tokens == sum(map(len, ids))
    assert len(ids[2]) > 2
    assert len(vectors) == 3


def test_token_ids_have_the_vector_of_their_text(smollm2: llama_model.LlamaModel) -> None:
    ids = tuple(smollm2.embedder.tokens_of(CAT))
    (tokens, (text,)), (counted, (of_ids,)) = embed(smollm2.embedder, CAT), embed(smollm2.embedder, ids)
    assert tokens == counted == len(ids)
    assert of_one_text(text, of_ids)
    last = smollm2.embedder.vocabulary_size - 1
    embed(smollm2.embedder, (0, last))
    with pytest.raises(errors.BadRequest, match=rf"input\[1\] has the token id {last + 1}; this model has {last + 1} tokens"):
        embed(smollm2.embedder, ids, (last + 1,))


@pytest.mark.nightly("long")
def test_text_as_long_as_the_context_is_accepted_and_a_longer_one_is_refused(smollm2: llama_model.LlamaModel) -> None:
    assert embed(smollm2.embedder, "a" + " a" * (CONTEXT - 1))[0] == CONTEXT
    with pytest.raises(errors.BadRequest, match=rf"input\[1\] has {CONTEXT + 1} tokens; this model allows {CONTEXT}"):
        embed(smollm2.embedder, "a", "a" + " a" * CONTEXT)


def test_fewer_dimensions_are_a_prefix(smollm2: llama_model.LlamaModel) -> None:
    (full,), (short,) = embed(smollm2.embedder, CAT)[1], embed(smollm2.embedder, CAT, dimensions=64)[1]
    length = math.hypot(*full[:64])
    assert of_one_text(short, [number / length for number in full[:64]])
    with pytest.raises(errors.BadRequest, match="dimensions is 577; this model's vectors have 576"):
        embed(smollm2.embedder, CAT, dimensions=577)


@pytest.mark.parametrize(("number", "pooling"), [(1, PoolingKind.MEAN), (2, PoolingKind.CLS), (3, PoolingKind.LAST)])
def test_bidirectional_model_gets_each_text_whole(tmp_path: Path, number: int, pooling: PoolingKind) -> None:
    bert_file.write(tmp_path / "bert.gguf", pooling=number)
    with loaded(tmp_path / "bert.gguf", bert_file.CONTEXT) as model:
        embedder = EmbeddingContext(model._model, context_tokens=50, step_tokens=16, threads=1, log=NativeLog())
        try:
            long = "cat dog " * 20
            tokens, vectors = embed(embedder, "cat runs fast", long, "dog sleeps")
            assert (embedder.whole, embedder.pooling) == (True, pooling)
            # Each text has [CLS] before it and [SEP] after it.
            assert tokens == 5 + 42 + 4
            assert [embed(embedder, text)[1][0] for text in ("cat runs fast", long, "dog sleeps")] == [
                pytest.approx(vector, abs=1e-4) for vector in vectors
            ]
            with pytest.raises(errors.BadRequest, match=r"input\[0\] has 52 tokens; this model allows 50"):
                embed(embedder, "cat dog " * 25)
        finally:
            embedder.free()


def test_attention_of_a_context_is_known_from_the_log(tmp_path: Path, smollm2: llama_model.LlamaModel) -> None:
    bert_file.write(tmp_path / "bert.gguf", pooling=1)
    with loaded(tmp_path / "bert.gguf", bert_file.CONTEXT) as bert:
        for model, is_causal in ((bert, False), (smollm2, True)):
            model.embedder.prepare()
            assert model._log.is_causal is is_causal
            # A compiled engine also has a function for it, and prebuilt libraries don't.
            with suppress(NotImplementedError):
                assert bool(native.llama_get_causal_attn(model._context)) is is_causal


def test_generation_model_is_recognized(smollm2: llama_model.LlamaModel) -> None:
    assert not smollm2.describe().only_embeds


def test_embedding_model_refuses_prompts(tmp_path: Path) -> None:
    bert_file.write(tmp_path / "bert.gguf", pooling=1)
    with loaded(tmp_path / "bert.gguf", bert_file.CONTEXT) as model:
        assert model.describe().only_embeds
        with pytest.raises(errors.BadRequest, match="only computes embeddings"):
            model.prompt_tokens(PreparedPrompt("cat"))
        assert len(embed(model.embedder, "cat")[1]) == 1


def test_texts_are_ranked_by_a_query_alone_and_in_a_batch(tmp_path: Path) -> None:
    bert_file.write(tmp_path / "bert.gguf", pooling=bert_file.RANK)
    documents = ("cat runs fast", "dog", "cat dog " * 20)
    with loaded(tmp_path / "bert.gguf", bert_file.CONTEXT) as model:
        tokens, scores = embed(model.embedder, *documents, query="dog runs")
        # [CLS] dog runs [SEP] document, as in llama-server.
        assert tokens == 3 * 4 + 3 + 1 + 40
        assert model.embedder.tokens_of_pair("dog runs", "cat") == [2, 6, 7, 3, 5]
        assert all(0 < score < 1 for (score,) in scores)
        assert len(set(scores)) == 3
        assert [embed(model.embedder, text, query="dog runs")[1][0] for text in documents] == [pytest.approx(it, abs=1e-5) for it in scores]
        assert embed(model.embedder, "dog", query="cat")[1][0] != pytest.approx(scores[1], abs=1e-5)
        with pytest.raises(errors.BadRequest, match="ranks texts and has no embeddings"):
            embed(model.embedder, "cat")


def test_model_for_embeddings_cannot_rank(smollm2: llama_model.LlamaModel) -> None:
    with pytest.raises(errors.BadRequest, match="cannot rank"):
        embed(smollm2.embedder, CAT, query=KITTEN)


def test_model_without_vectors_is_recognized(tmp_path: Path) -> None:
    bert_file.write(tmp_path / "bert.gguf", pooling=77)  # unknown to llama.cpp
    with loaded(tmp_path / "bert.gguf", bert_file.CONTEXT) as model, pytest.raises(errors.BadRequest, match="has no embeddings"):
        embed(model.embedder, "cat")
