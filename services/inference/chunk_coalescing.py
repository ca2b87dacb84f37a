"""Joins the chunks of an answer that is not streamed, because a frame per token would be wasted on it."""

import time
from collections.abc import Callable

import msgspec

from services.inference.jobs.backend_interface import Sink
from shared.api.inference import Chunk

#: Chunks held back are lost if the worker dies; another worker then computes them again.
GATHER_SECONDS = 0.25
#: Most tokens in a chunk, which then has a few hundred characters and at most 16 KiB.
MOST_TOKENS = 64


class CoalescedChunks:
    """Sends the first chunk at once, so that the caller knows that its answer has begun, and joins the others. ``flush`` it at the end."""

    def __init__(self, sink: Sink, clock: Callable[[], float] = time.monotonic) -> None:
        self._sink = sink
        self._clock = clock
        self._held: dict[int, Chunk] = {}
        self._sent_at = 0.0

    def accept(self, prompt_tokens: int | None) -> None:
        self._sink.accept(prompt_tokens)

    async def send(self, item: Chunk) -> None:
        if item.waiting:
            await self._sink.send(item)
            return
        held = self._held.get(item.answer)
        together = self._held[item.answer] = item if held is None else _joined(held, item)
        is_due = len(together.token_ids) >= MOST_TOKENS or self._clock() - self._sent_at >= GATHER_SECONDS
        if is_due or item.finish is not None:
            await self.flush()

    async def flush(self) -> None:
        held, self._held = self._held, {}
        self._sent_at = self._clock()
        for chunk in held.values():
            await self._sink.send(chunk)


def _joined(first: Chunk, then: Chunk) -> Chunk:
    return msgspec.structs.replace(
        then,
        text=first.text + then.text,
        token_ids=first.token_ids + then.token_ids,
        logprobs=first.logprobs + then.logprobs,
        tool_calls=first.tool_calls + then.tool_calls,
    )
