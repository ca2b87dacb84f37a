"""The embedding loop, on a model whose vectors count letters."""

import struct
from collections.abc import Callable, Iterable, Sequence

import pytest

from services.inference.engine.embedding_loop import MIN_TOKENS, EmbeddingLoop, TextPiece
from services.inference.engine.engine_messages import EmbeddingTurn, EmbedTexts, GenerationAccepted, GenerationRefused, StepReport
from shared import errors
from shared.gguf.gguf_header import PoolingKind

LETTERS = "abcd"


class LetterModel:
    """Each letter is a token; a vector counts letters. Checks that tokens arrive without gaps."""

    context_tokens = 40
    step_tokens = 8
    dimensions = len(LETTERS)
    vocabulary_size = len(LETTERS)
    slots = 3
    whole = False
    pooling = PoolingKind.MEAN

    def __init__(self, refuses: errors.AimeshError | None = None) -> None:
        self.refuses = refuses
        self.memory: dict[int, int] = {}
        self.batches: list[int] = []
        self.counted: list[str] = []

    def prepare(self) -> None:
        if self.refuses is not None:
            raise self.refuses

    def tokens_of(self, text: str) -> list[int]:
        self.counted.append(text)
        return [LETTERS.find(letter) for letter in text.strip()]

    def tokens_of_pair(self, query: str, text: str) -> list[int]:
        return self.tokens_of(query + text)

    def run(self, pieces: Sequence[TextPiece]) -> list[Sequence[float]]:
        self.batches.append(sum(len(piece.tokens) for piece in pieces))
        rows: list[Sequence[float]] = []
        for piece in pieces:
            assert self.memory.get(piece.slot, 0) == piece.start, "fed with a gap or twice"
            self.memory[piece.slot] = piece.start + len(piece.tokens)
            if piece.ends:
                self.clear(piece.slot)
            # A text with an unknown letter gets a vector of zeros.
            rows.append([0.0] * 4 if -1 in piece.tokens else [list(piece.tokens).count(token) / len(piece.tokens) for token in range(4)])
        return rows

    def clear(self, slot: int) -> None:
        self.memory.pop(slot, None)


class EmbeddingRun:
    """Runs an `EmbeddingLoop` and collects its reports by request."""

    def __init__(self, model: LetterModel, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.model = model
        self.loop = EmbeddingLoop(model, clock=clock)
        self.accepted: dict[int, int] = {}
        self.vectors: dict[int, list[tuple[float, ...]]] = {}
        self.refused: dict[int, errors.Problem] = {}

    def embed(self, number: int, *inputs: str, dimensions: int | None = None, batch: bool = False) -> None:
        command = EmbedTexts(number, inputs, dimensions, is_batch=batch)
        try:
            self.loop.measure(command)
            texts = self.loop.tokenize(command)
        except (errors.BadRequest, errors.Unavailable) as error:
            self._take([GenerationRefused(number, error.to_problem())])
        else:
            self._take([self.loop.begin(command, texts)])

    def turn(self, step: StepReport | None = None) -> None:
        self._take(self.loop.turn(step))

    def run(self) -> None:
        while not self.loop.idle:
            self.turn()

    def _take(self, reports: Iterable[GenerationAccepted | GenerationRefused | EmbeddingTurn]) -> None:
        for report in reports:
            match report:
                case GenerationAccepted():
                    self.accepted[report.id] = report.prompt_tokens
                case GenerationRefused():
                    self.refused[report.id] = report.problem
                case EmbeddingTurn():
                    for one in report.vectors:
                        found = self.vectors.setdefault(one.id, [])
                        found += [tuple(round(number, 3) for number in struct.unpack(f"<{len(it) // 4}f", it)) for it in one.vectors]


def test_requests_get_their_own_vectors_in_order() -> None:
    run = EmbeddingRun(LetterModel())
    run.embed(1, "a", "bbb", "ab" * 15)
    run.embed(2, "cd")
    run.run()
    assert run.accepted == {1: 34, 2: 2}
    assert run.vectors == {1: [(1, 0, 0, 0), (0, 1, 0, 0), (0.707, 0.707, 0, 0)], 2: [(0, 0, 0.707, 0.707)]}
    assert max(run.model.batches) == LetterModel.step_tokens
    assert not run.model.memory


def test_fewer_dimensions_are_a_normalized_prefix() -> None:
    run = EmbeddingRun(LetterModel())
    run.embed(1, "abcccc", dimensions=2)
    run.run()
    assert run.vectors == {1: [(0.707, 0.707)]}


@pytest.mark.parametrize(
    ("inputs", "dimensions", "message"),
    [
        pytest.param(("a", "b" * 41), None, r"input\[1\] has 41 tokens; this model allows 40", id="a text over the context is not cut"),
        pytest.param(("a", " "), None, r"input\[1\] has no tokens", id="a text without tokens"),
        pytest.param(("a",), 5, "dimensions is 5; this model's vectors have 4", id="more dimensions than there are"),
        pytest.param(("a", "?"), None, r"computed no vector for input\[1\]", id="a text for which the model computes nothing"),
        pytest.param(("?", "a" * 30), None, r"computed no vector for input\[0\]", id="the same with a text behind it that is begun"),
    ],
)
def test_invalid_text_refuses_only_its_request(inputs: tuple[str, ...], dimensions: int | None, message: str) -> None:
    run = EmbeddingRun(LetterModel())
    run.embed(1, *inputs, dimensions=dimensions)
    run.embed(2, "d")
    run.run()
    assert list(run.refused) == [1]
    with pytest.raises(errors.AimeshError, match=message):
        raise errors.from_problem(run.refused[1])
    assert run.vectors[2] == [(0, 0, 0, 1)]
    assert not run.model.memory


@pytest.mark.parametrize("refuses", [errors.BadRequest("it ranks"), errors.Unavailable("no memory")])
def test_model_without_vectors_refuses_every_request_with_the_reason(refuses: errors.AimeshError) -> None:
    run = EmbeddingRun(LetterModel(refuses))
    run.embed(1, "a")
    run.embed(2, "a")
    assert [problem.message for problem in run.refused.values()] == [refuses.message] * 2
    assert run.loop.idle


def test_embeddings_make_progress_without_slowing_answers_much() -> None:
    model = LetterModel()
    ticks = iter(range(1000))
    run = EmbeddingRun(model, clock=lambda: next(ticks) * 1.0)
    run.embed(1, "a" * 40)
    run.turn(StepReport((), seconds=0.001, answering=2, read=0))
    while not run.loop.idle:
        run.turn(StepReport((), seconds=0.001, answering=2, read=30))
    *regular, last = model.batches[1:]
    assert set(regular) == {MIN_TOKENS}
    assert 0 < last <= MIN_TOKENS
    run.embed(2, "a" * 40)
    run.turn(None)
    assert model.batches[-1] == LetterModel.step_tokens


def test_cancel_at_any_moment_frees_memory_and_leaves_other_requests() -> None:
    for moment in range(12):
        run = EmbeddingRun(LetterModel())
        run.embed(1, "a" * 30, "b" * 30)
        run.embed(2, "c" * 20)
        for _ in range(moment):
            run.turn()
        run.loop.cancel(1)
        run.loop.cancel(1)
        before = len(run.vectors.get(1, ()))
        run.run()
        assert run.vectors[2] == [(0, 0, 1, 0)]
        assert len(run.vectors.get(1, ())) == before
        assert not run.model.memory


def test_texts_of_batches_wait_for_live_texts_and_live_answers() -> None:
    run, live_step, batch_step = EmbeddingRun(LetterModel()), StepReport((), answering=1), StepReport((), answering=1, is_batch=True)
    run.embed(1, "aa", batch=True)
    run.embed(2, "bb")
    run.turn(live_step)
    assert list(run.vectors) == [2]
    run.turn(live_step)
    assert list(run.vectors) == [2]
    run.turn(batch_step)
    assert list(run.vectors) == [2, 1]


def test_live_text_waits_only_for_the_text_of_a_batch_that_has_begun() -> None:
    run = EmbeddingRun(LetterModel())
    run.embed(1, "a" * 20, "c", batch=True)
    run.turn()
    run.embed(2, "bb")
    while 2 not in run.vectors:
        run.turn(StepReport((), answering=1))
    assert len(run.vectors.get(1, ())) == 1
    run.run()
    assert run.vectors == {1: [(1, 0, 0, 0), (0, 0, 1, 0)], 2: [(0, 1, 0, 0)]}
    assert not run.model.memory


def test_batch_text_that_has_begun_can_be_canceled() -> None:
    run = EmbeddingRun(LetterModel())
    run.embed(1, "a" * 40, batch=True)
    run.turn()
    run.embed(2, "bb")
    run.loop.cancel(1)
    run.run()
    assert list(run.vectors) == [2]
    assert not run.model.memory
