"""What a backend that gives vectors looks like to the service."""

from typing import Protocol, runtime_checkable

from services.inference.jobs.embedding_job import EmbeddingJob
from shared.api.embedding import Embedded, Vectors
from shared.api.inference import Chunk


class VectorSink(Protocol):
    """Where vectors go."""

    def accept(self, prompt_tokens: int | None) -> None:
        """The texts are understood and queued. None where only the end will tell how many tokens they have."""
        ...

    async def send(self, item: Vectors) -> None:
        """Waits for a slow reader. Raises CancelledError when there is no reader any more."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """A backend whose models give vectors."""

    async def embed(self, job: EmbeddingJob, sink: VectorSink) -> Embedded:
        """The vectors of all texts, in their order. Raises BadRequest, Overloaded, Unavailable or ModelCrashed. Cancelling the task
        stops it within one batch; of another program's server, within the batch that it is asked for."""
        ...


class WaitingSink:
    """Tells a reader of vectors what he waits for, in the place of a sink of answers."""

    def __init__(self, sink: VectorSink) -> None:
        self._sink = sink

    def accept(self, prompt_tokens: int | None) -> None:
        """Only an answer is accepted by this; texts are by their own sink."""

    async def send(self, item: Chunk) -> None:
        await self._sink.send(Vectors(waiting=item.waiting))
