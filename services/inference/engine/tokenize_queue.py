"""Tokenizes texts in the main thread while the engine's loop runs in another, so that a long text doesn't stop running answers.

It does one text at a time: a text of 1 MB takes up to two seconds of a core, and llama.cpp needs the others.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from services.inference.engine.engine_messages import ConversionResult, GenerationAccepted, GenerationRefused
from shared import errors

#: Bounds the memory, in case a worker doesn't bound its queue.
MAX_WAITING_BYTES = 64 * 1024 * 1024

TextReport = GenerationAccepted | GenerationRefused | ConversionResult
Continue = Callable[[], TextReport]
Tokens = TypeVar("Tokens")


@dataclass(frozen=True, slots=True)
class _Text:
    size: int
    tokenize: Callable[[], Continue]


class TokenizeQueue:
    """Call ``run`` in the main thread, ``close`` in any thread, and everything else in the loop's thread."""

    def __init__(self, most_bytes: int = MAX_WAITING_BYTES) -> None:
        self._most_bytes = most_bytes
        #: Guards everything below.
        self._changed = threading.Condition()
        #: By the command's id, in order of arrival.
        self._waiting: dict[int, _Text] = {}
        self._waiting_bytes = 0
        #: The id of the current text, and whether its command was not canceled.
        self._current: int | None = None
        self._is_wanted = False
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

    def submit(self, identity: int, size: int, tokenize: Callable[[], Tokens], then: Callable[[Tokens], TextReport]) -> None:
        """Queue a command's text of ``size`` bytes; ``then`` runs in ``results``. Raises Overloaded if too much is queued."""
        with self._changed:
            if self._waiting_bytes + size > self._most_bytes:
                raise errors.Overloaded(f"prompts of {self._waiting_bytes} bytes are queued", hint="try again later", retry_after_seconds=5)
            self._waiting[identity] = _Text(size, lambda: partial(then, tokenize()))
            self._waiting_bytes += size
            self._changed.notify()

    def cancel(self, identity: int) -> None:
        """Forget a command. Safe to call for unknown ids."""
        with self._changed:
            if (text := self._waiting.pop(identity, None)) is not None:
                self._waiting_bytes -= text.size
            if self._current == identity:
                self._is_wanted = False
            self._tokenized.pop(identity, None)

    @property
    def is_busy(self) -> bool:
        with self._changed:
            return bool(self._waiting) or self._current is not None

    def is_current(self, identity: int) -> bool:
        """Whether the text that is being read is still wanted. Safe to call in any thread."""
        with self._changed:
            return self._current == identity and self._is_wanted

    def results(self) -> Iterator[TextReport]:
        """Continue the commands with tokenized texts. Raises Internal if the main thread has stopped tokenizing."""
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
                proceed = partial(GenerationRefused, identity, error.to_problem())
            self._finish(identity, proceed)

    def close(self) -> None:
        """Make ``run`` return after the current text, and ``results`` raise. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            self._wake()

    def _take(self) -> tuple[int, _Text] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            if self._closed:
                return None
            # Alternate between the oldest and the shortest text: a short one waits for at most one long one, and no text starves.
            self._oldest_next = not self._oldest_next
            identity = next(iter(self._waiting)) if self._oldest_next else min(self._waiting, key=lambda one: self._waiting[one].size)
            text = self._waiting.pop(identity)
            self._waiting_bytes -= text.size
            self._current, self._is_wanted = identity, True
            return identity, text

    def _finish(self, identity: int, proceed: Continue) -> None:
        with self._changed:
            if self._is_wanted:
                self._tokenized[identity] = proceed
                self._wake()
            self._current = None

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._wake_writer, b"!")
