"""Tokenizes texts in the process's main thread while the engine's loop runs in another, so that no text stops running answers.

The main thread, because only there can an alarm interrupt a chat template (`prompt`). One text at a time: a text of 1 MB takes up to two
seconds of a processor, and llama.cpp needs the others.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from services.inference.engine.engine_messages import GenerationAccepted, GenerationRefused
from shared import errors

#: Of all texts that wait. Workers bound their own queues; this bounds the memory if they don't.
MAX_WAITING_BYTES = 64 * 1024 * 1024

#: Runs in the loop's thread when a text's tokens are there.
Continue = Callable[[], GenerationAccepted | GenerationRefused]
Tokens = TypeVar("Tokens")


@dataclass(frozen=True, slots=True)
class _Text:
    size: int
    tokenize: Callable[[], Continue]


class TokenizeQueue:
    """``run`` belongs to the main thread, everything else to the loop's. ``close`` may be called from both, and twice."""

    def __init__(self) -> None:
        #: Guards all below.
        self._changed = threading.Condition()
        #: By the command's id, in order of arrival.
        self._waiting: dict[int, _Text] = {}
        self._waiting_bytes = 0
        #: The id of the text in work; None also when its command has been canceled.
        self._current: int | None = None
        self._oldest_next = False
        self._tokenized: dict[int, Continue] = {}
        self._closed = False
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)

    def __enter__(self) -> "TokenizeQueue":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def fileno(self) -> int:
        """Readable when ``results`` has something to return."""
        return self._wake_reader

    def submit(
        self, identity: int, size: int, tokenize: Callable[[], Tokens], then: Callable[[Tokens], GenerationAccepted | GenerationRefused]
    ) -> None:
        """Tokenize a command's text of ``size`` bytes; ``then`` runs in ``results``. Raises Overloaded when too much waits."""

        def work() -> Continue:
            tokens = tokenize()
            return lambda: then(tokens)

        with self._changed:
            if self._waiting_bytes + size > MAX_WAITING_BYTES:
                raise errors.Overloaded(
                    f"prompts of {self._waiting_bytes} bytes wait to be read", hint="try again later", retry_after_seconds=5
                )
            self._waiting[identity] = _Text(size, work)
            self._waiting_bytes += size
            self._changed.notify()

    def cancel(self, identity: int) -> None:
        """Forget a command, wherever it is. Safe to call for unknown ids."""
        with self._changed:
            if (text := self._waiting.pop(identity, None)) is not None:
                self._waiting_bytes -= text.size
            if self._current == identity:
                self._current = None
            self._tokenized.pop(identity, None)

    def results(self) -> Iterator[GenerationAccepted | GenerationRefused]:
        """Continue the commands whose tokens are there. Raises Internal when the main thread has stopped tokenizing."""
        with self._changed:
            if self._closed:
                raise errors.Internal("the engine stopped reading prompts")
            tokenized, self._tokenized = self._tokenized, {}
            with suppress(BlockingIOError):
                os.read(self._wake_reader, 4096)
        for proceed in tokenized.values():
            yield proceed()

    def run(self) -> None:
        """Tokenize until closed."""
        while (taken := self._take()) is not None:
            identity, text = taken
            try:
                proceed = text.tokenize()
            except (errors.BadRequest, errors.Unavailable) as error:
                proceed = _returning(GenerationRefused(identity, error.to_problem()))
            self._finish(identity, proceed)

    def close(self) -> None:
        """Have ``run`` return after the text in work, and ``results`` raise."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            self._wake()

    def _take(self) -> tuple[int, _Text] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                return None
            # A short text waits behind one long text at most, and a long one behind one short one for each that arrived before it.
            self._oldest_next = not self._oldest_next
            identity = next(iter(self._waiting)) if self._oldest_next else min(self._waiting, key=lambda one: self._waiting[one].size)
            text = self._waiting.pop(identity)
            self._waiting_bytes -= text.size
            self._current = identity
            return identity, text

    def _finish(self, identity: int, proceed: Continue) -> None:
        with self._changed:
            if self._current == identity:
                self._tokenized[identity] = proceed
                self._wake()
            self._current = None

    def _wake(self) -> None:
        # A full pipe wakes the loop as well.
        with suppress(BlockingIOError):
            os.write(self._wake_writer, b"!")


def _returning(refused: GenerationRefused) -> Continue:
    return lambda: refused
