"""The order in which texts are tokenized. The test's own thread acts as the loop's; another thread tokenizes."""

import select
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from services.inference.engine.engine_messages import GenerationAccepted, GenerationRefused
from services.inference.engine.tokenize_queue import TokenizeQueue
from shared import errors

DEADLINE_SECONDS = 30


class Tokenizer:
    """Tokenizes a text when ``gate`` allows it, and records the order."""

    def __init__(self, queue: TokenizeQueue) -> None:
        self.queue = queue
        self.began: list[int] = []
        self.gate = threading.Semaphore(0)

    def submit(self, identity: int, size: int = 1, refuses: errors.AimeshError | None = None) -> None:
        def tokenize() -> list[int]:
            self.began.append(identity)
            assert self.gate.acquire(timeout=DEADLINE_SECONDS)
            if refuses is not None:
                raise refuses
            return [identity] * size

        self.queue.submit(identity, size, tokenize, lambda tokens: GenerationAccepted(identity, len(tokens)))

    def results(self, count: int) -> list[GenerationAccepted | GenerationRefused]:
        """Release all texts, and wait for this many results."""
        self.gate.release(100)
        found: list[GenerationAccepted | GenerationRefused] = []
        while len(found) < count:
            assert select.select([self.queue], [], [], DEADLINE_SECONDS)[0], "there is no further result"
            found += self.queue.results()
        return found


@contextmanager
def running() -> Iterator[Tokenizer]:
    with TokenizeQueue() as queue, ThreadPoolExecutor(1) as threads:
        ended = threads.submit(queue.run)
        tokenizer = Tokenizer(queue)
        try:
            yield tokenizer
        finally:
            tokenizer.gate.release(100)
            queue.close()
            ended.result(DEADLINE_SECONDS)


def test_texts_are_tokenized_in_one_thread_and_continued_in_another() -> None:
    with running() as tokenizer:
        tokenizer.submit(1, 3)
        assert not select.select([tokenizer.queue], [], [], 0)[0]
        assert list(tokenizer.queue.results()) == []
        assert tokenizer.results(1) == [GenerationAccepted(1, 3)]
        assert not select.select([tokenizer.queue], [], [], 0)[0]


def test_short_texts_overtake_long_ones_which_never_starve() -> None:
    with TokenizeQueue() as queue:
        tokenizer = Tokenizer(queue)
        for identity, size in ((1, 900), (2, 800), (3, 5), (4, 4), (5, 6), (6, 7)):
            tokenizer.submit(identity, size)
        with ThreadPoolExecutor(1) as threads:
            ended = threads.submit(queue.run)
            assert {report.id for report in tokenizer.results(6)} == {1, 2, 3, 4, 5, 6}
            queue.close()
            ended.result(DEADLINE_SECONDS)
    # The oldest and the shortest take turns.
    assert tokenizer.began == [1, 4, 2, 3, 5, 6]


def test_refused_text_is_reported_and_the_next_one_is_tokenized() -> None:
    with running() as tokenizer:
        refusal = errors.BadRequest("the model's chat template refuses these messages")
        tokenizer.submit(1, refuses=refusal)
        tokenizer.submit(2)
        assert tokenizer.results(2) == [GenerationRefused(1, refusal.to_problem()), GenerationAccepted(2, 1)]


def test_canceled_texts_are_not_tokenized_and_a_running_one_has_no_result() -> None:
    with running() as tokenizer:
        for identity in (1, 2, 3):
            tokenizer.submit(identity)
        while not tokenizer.began:
            select.select([], [], [], 0.001)
        tokenizer.queue.cancel(1)
        tokenizer.queue.cancel(2)
        tokenizer.queue.cancel(77)
        assert tokenizer.results(1) == [GenerationAccepted(3, 1)]
        assert tokenizer.began == [1, 3]


def test_text_canceled_after_tokenization_has_no_result() -> None:
    with running() as tokenizer:
        tokenizer.gate.release()
        tokenizer.submit(1)
        assert select.select([tokenizer.queue], [], [], DEADLINE_SECONDS)[0]
        tokenizer.queue.cancel(1)
        assert list(tokenizer.queue.results()) == []
        # Otherwise an idle engine would spin.
        assert not select.select([tokenizer.queue], [], [], 0)[0]


def test_queued_texts_are_bounded() -> None:
    with TokenizeQueue(10) as queue:
        tokenizer = Tokenizer(queue)
        tokenizer.submit(1, 6)
        tokenizer.submit(2, 4)
        with pytest.raises(errors.Overloaded):
            tokenizer.submit(3, 1)
        queue.cancel(2)
        tokenizer.submit(3, 4)


def test_loop_notices_when_tokenization_stops() -> None:
    with TokenizeQueue() as queue:
        queue.close()
        queue.close()
        assert select.select([queue], [], [], 0)[0]
        with pytest.raises(errors.Internal):
            list(queue.results())
