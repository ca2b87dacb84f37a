"""The engine's process around a toy model: what runs while a text is tokenized."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from services.inference.engine import engine_messages, engine_process
from services.inference.engine.embedding_loop import EmbeddingLoop
from services.inference.engine.engine_loop import EngineLoop
from services.inference.engine.engine_messages import (
    AddImage,
    CancelGeneration,
    ConversionResult,
    ConvertTokens,
    EmbeddingTurn,
    EmbedTexts,
    EncodingImages,
    GenerationAccepted,
    GenerationRefused,
    PreparedPrompt,
    StartGeneration,
    StepReport,
)
from services.inference.engine.prompt_cache import HashedTokens
from services.inference.engine.sampling import Parameters
from services.inference.engine.scheduler import PrefillBudget
from services.inference.engine.sequence import ImagePrompt
from services.inference.engine.special_tokens import IMAGE_MARK
from services.inference.engine.tokenize_queue import TokenizeQueue
from services.inference.images.prompt_images import DecodedImage
from shared import errors
from shared.api.inference import MAX_CONVERTED_BYTES
from tests.services.inference.engine.test_embedding_loop import LetterModel
from tests.services.inference.engine.toy_model import ToyModel

DEADLINE_SECONDS = 30


@dataclass
class HeldModel(ToyModel):
    """Tokenizes texts that begin with "held" only when ``let_go`` is set."""

    tokenizing: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)
    gave_up: threading.Event = field(default_factory=threading.Event)

    def prompt_tokens(self, prompt: PreparedPrompt) -> list[int]:
        self._hold(prompt.text)
        return super().prompt_tokens(prompt)

    def convert(self, command: ConvertTokens) -> bytes:
        self._hold(command.prompt)
        return super().convert(command)

    def read_images(self, command: StartGeneration, images: Sequence[DecodedImage], is_wanted: Callable[[], bool]) -> ImagePrompt:
        self._hold(command.prompt.text)
        if not is_wanted():
            self.gave_up.set()
            raise errors.BadRequest("the request was canceled")
        return super().read_images(command, images, is_wanted)

    def _hold(self, text: str) -> None:
        if text.startswith("held"):
            self.tokenizing.set()
            assert self.let_go.wait(DEADLINE_SECONDS)


class Worker:
    """The worker's end of the socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unframer = engine_messages.Unframer()
        self._pending: list[engine_messages.Report] = []

    def send(self, command: engine_messages.Command) -> None:
        self._connection.sendall(engine_messages.pack(command))

    def until(self, wanted: Callable[[engine_messages.Report], object]) -> list[engine_messages.Report]:
        """Return all reports up to the first wanted one."""
        seen: list[engine_messages.Report] = []
        while True:
            while self._pending:
                seen.append(self._pending.pop(0))
                if wanted(seen[-1]):
                    return seen
            received = self._connection.recv(65536)
            assert received, "the engine is gone"
            self._pending += [engine_messages.report_decoder.decode(body) for body in self._unframer.feed(received)]


@contextmanager
def served(model: ToyModel) -> Iterator[Worker]:
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_SECONDS)
    with theirs, ThreadPoolExecutor(1) as threads:
        loop = EngineLoop(model, slots=model.slots)
        ended = threads.submit(engine_process.run, engine_process.Channel(theirs), loop, EmbeddingLoop(LetterModel()))
        with ours:
            yield Worker(ours)
        with suppress(engine_process.WorkerGone, BrokenPipeError, ConnectionResetError):
            ended.result(DEADLINE_SECONDS)


def generate(identity: int, text: str, *, max_tokens: int = 10) -> StartGeneration:
    return StartGeneration(identity, PreparedPrompt(text), Parameters(0, 1, 0, 1, max_tokens=max_tokens))


def test_answers_continue_while_a_text_is_tokenized() -> None:
    model = HeldModel()
    with served(model) as worker:
        worker.send(generate(1, "abcdefgh", max_tokens=8))
        worker.until(lambda report: isinstance(report, StepReport))
        worker.send(generate(2, "held"))
        assert model.tokenizing.wait(DEADLINE_SECONDS)
        seen = worker.until(lambda report: isinstance(report, StepReport) and any(one.finish for one in report.progress))
        assert not [report for report in seen if isinstance(report, GenerationAccepted) and report.id == 2]
        model.let_go.set()
        worker.until(lambda report: report == GenerationAccepted(2, 4))


def test_request_canceled_during_tokenization_gets_no_slot() -> None:
    model = HeldModel()
    with served(model) as worker:
        worker.send(generate(1, "held"))
        assert model.tokenizing.wait(DEADLINE_SECONDS)
        worker.send(CancelGeneration(1))
        worker.send(generate(2, "held too"))
        worker.send(generate(3, "x" * 1000))  # refused at once, so everything before it has been read
        worker.until(lambda report: isinstance(report, GenerationRefused))
        model.let_go.set()
        assert worker.until(lambda report: isinstance(report, GenerationAccepted)) == [GenerationAccepted(2, 8)]


def test_answers_continue_while_a_text_is_converted() -> None:
    model = HeldModel()
    with served(model) as worker:
        worker.send(generate(1, "abcdefgh", max_tokens=8))
        worker.until(lambda report: isinstance(report, StepReport))
        worker.send(ConvertTokens(2, "held"))
        assert model.tokenizing.wait(DEADLINE_SECONDS)
        worker.send(ConvertTokens(3, "held as well"))
        worker.send(CancelGeneration(3))
        seen = worker.until(lambda report: isinstance(report, StepReport) and any(one.finish for one in report.progress))
        assert not [report for report in seen if isinstance(report, ConversionResult)]
        model.let_go.set()
        worker.send(ConvertTokens(4, "", b"tokens"))
        worker.send(ConvertTokens(5, "refuse"))
        seen = worker.until(lambda report: isinstance(report, GenerationRefused))
        assert [report for report in seen if isinstance(report, ConversionResult)] == [
            ConversionResult(2, b"held"),
            ConversionResult(4, b"tokens"),
        ]


def test_text_that_fits_no_context_is_refused_before_tokenization() -> None:
    model = HeldModel()
    with served(model) as worker:
        worker.send(generate(1, "held" + "x" * model.context_tokens * model.longest_token_bytes))
        (refused,) = worker.until(lambda report: isinstance(report, GenerationRefused))
        assert isinstance(refused, GenerationRefused)
        assert "260 bytes" in refused.problem.message
        assert not model.tokenizing.is_set()


@pytest.mark.parametrize("letter", ["<", "a"])
def test_long_texts_never_block_the_loop(letter: str) -> None:
    """Measured in CPU time of the loop's thread, because the machine may be busy."""
    text = letter * 900_000
    model = HeldModel(context_tokens=2**20, pool_tokens=2**21)
    loop = EngineLoop(model, slots=model.slots)
    command = generate(1, text)
    tokens = ImagePrompt(HashedTokens(list(text.encode())))
    converted = ConvertTokens(2, text)
    spent = []
    for work in (
        lambda: loop.measure(command),
        lambda: loop.begin(command, tokens),
        lambda: loop.cancel(1),
        lambda: engine_messages.pack(converted),
        lambda: engine_messages.pack(ConversionResult(2, bytes(MAX_CONVERTED_BYTES))),
    ):
        began = time.thread_time()
        work()
        spent.append(time.thread_time() - began)
    assert max(spent) < 0.05


def test_answers_and_texts_continue_while_images_are_encoded() -> None:
    model = HeldModel()
    with served(model) as worker:
        worker.send(AddImage(1, DecodedImage(1, 2, b"ABCDEF")))
        worker.send(generate(1, f"held {IMAGE_MARK} up"))
        assert model.tokenizing.wait(DEADLINE_SECONDS)
        worker.send(generate(2, "abcdefgh", max_tokens=8))
        seen = worker.until(lambda report: isinstance(report, StepReport) and any(one.finish for one in report.progress))
        assert [report.id for report in seen if isinstance(report, GenerationAccepted)] == [2]
        model.let_go.set()
        worker.until(lambda report: report == GenerationAccepted(1, 5 + 4 + 3, None, 0.5))


def test_steps_and_embeddings_beside_the_encoding_of_an_image_are_not_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = list[tuple[int, bool]]()

    def record(_: PrefillBudget, seconds: float, *, answering: int, read: int, is_usual: bool = True) -> None:
        recorded.append((answering, is_usual))

    monkeypatch.setattr(PrefillBudget, "record_step", record)
    model = HeldModel()

    def compute(first: int) -> set[tuple[int, bool]]:
        """Return the kinds of steps: (1 if there is an answer, whether the step is usual)."""
        recorded.clear()
        worker.send(generate(first, "abcdefgh", max_tokens=8))
        worker.until(lambda report: isinstance(report, StepReport) and any(one.finish for one in report.progress))
        worker.send(EmbedTexts(first + 1, ("a",)))
        worker.until(lambda report: isinstance(report, EmbeddingTurn))
        return {(min(answering, 1), is_usual) for answering, is_usual in recorded}

    with served(model) as worker:
        assert compute(1) == {(0, True), (1, True)}
        worker.send(AddImage(9, DecodedImage(1, 2, b"ABCDEF")))
        worker.send(generate(9, f"held {IMAGE_MARK} up"))
        assert model.tokenizing.wait(DEADLINE_SECONDS)
        assert compute(3) == {(0, False), (1, False)}
        # The canceled request's image is still encoded to the end.
        worker.send(CancelGeneration(9))
        assert compute(5) == {(0, False), (1, False)}
        model.let_go.set()
        worker.send(AddImage(10, DecodedImage(1, 2, b"ABCDEF")))
        worker.send(generate(10, IMAGE_MARK))
        worker.until(lambda report: isinstance(report, StepReport) and any(one.finish for one in report.progress))
        assert compute(7) == {(0, True), (1, True)}


def test_an_engine_that_only_encodes_images_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "_ALIVE_SECONDS", 0.01)
    model = HeldModel()
    with served(model) as worker:
        worker.send(AddImage(1, DecodedImage(1, 2, b"ABCDEF")))
        worker.send(generate(1, f"held {IMAGE_MARK} up"))
        for _ in range(3):
            worker.until(lambda report: report == EncodingImages())
        model.let_go.set()
        worker.until(lambda report: isinstance(report, StepReport) and any(one.finish for one in report.progress))


def test_request_canceled_while_its_images_are_encoded_stops_behind_the_current_one() -> None:
    model = HeldModel()
    with served(model) as worker:
        worker.send(AddImage(1, DecodedImage(1, 2, b"ABCDEF")))
        worker.send(generate(1, f"held {IMAGE_MARK} up"))
        assert model.tokenizing.wait(DEADLINE_SECONDS)
        worker.send(CancelGeneration(1))
        worker.send(generate(3, "x" * 1000))  # refused at once, so everything before it has been read
        worker.until(lambda report: isinstance(report, GenerationRefused))
        model.let_go.set()
        assert model.gave_up.wait(DEADLINE_SECONDS)
        worker.send(generate(4, "abc"))
        seen = worker.until(lambda report: isinstance(report, GenerationAccepted))
        assert seen[-1] == GenerationAccepted(4, 3)


def test_images_of_a_request_that_never_comes_are_forgotten() -> None:
    loop = EngineLoop(ToyModel(), slots=4)
    with TokenizeQueue() as texts, TokenizeQueue() as images:
        queues = engine_process.CommandQueues(loop, EmbeddingLoop(LetterModel()), texts, images)
        for identity, end in ((1, CancelGeneration(1)), (2, generate(2, "x" * 1000))):
            for _ in range(2):
                assert queues.handle(AddImage(identity, DecodedImage(1, 2, b"ABCDEF"))) is None
            queues.handle(end)
        assert queues._received == {}


def test_more_pixels_than_fit_are_refused() -> None:
    loop = EngineLoop(ToyModel(), slots=4)
    with TokenizeQueue() as texts, TokenizeQueue(9) as images:
        queues = engine_process.CommandQueues(loop, EmbeddingLoop(LetterModel()), texts, images)
        for identity in (1, 2):
            queues.handle(AddImage(identity, DecodedImage(1, 2, b"ABCDEF")))
            refused = queues.handle(generate(identity, IMAGE_MARK))
            assert (refused is not None) is (identity == 2)
    assert refused is not None
    assert refused.problem.code == "overloaded"


class SlowReader(ToyModel):
    def prompt_tokens(self, prompt: PreparedPrompt) -> list[int]:
        time.sleep(0.02)
        return super().prompt_tokens(prompt)


def test_a_live_prompt_that_is_being_read_waits_for_no_further_step_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "_TEXT_SECONDS", DEADLINE_SECONDS)
    sent: list[object] = []

    def script() -> Iterator[list[engine_messages.Command]]:
        yield [msgspec.structs.replace(generate(1, "abc", max_tokens=10_000), is_batch=True)]
        while not any(isinstance(report, StepReport) for report in sent):
            yield []
        sent.append("live")
        yield [generate(2, "abcd")]
        while GenerationAccepted(2, 4) not in sent:
            yield []
        raise engine_process.WorkerGone

    turns = script()
    channel = SimpleNamespace(send=sent.append, commands=lambda **_: next(turns))
    with TokenizeQueue() as texts, TokenizeQueue() as images, ThreadPoolExecutor(1) as threads:
        queues = engine_process.CommandQueues(EngineLoop(SlowReader(), slots=4), EmbeddingLoop(LetterModel()), texts, images)
        reading = threads.submit(texts.run)
        with pytest.raises(engine_process.WorkerGone):
            engine_process._run_loop(cast("engine_process.Channel", channel), queues)
        queues.close()
        reading.result()
    assert sent[sent.index("live") + 1] == GenerationAccepted(2, 4)
