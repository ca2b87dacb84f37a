"""Vectors by another program's server: asked for batch by batch, and sent on as they come."""

from collections.abc import Awaitable, Callable, Iterator

from services.inference.backends.remote import http_server_client
from services.inference.backends.remote.embedding_answer import Answered, EmbeddingAssembly
from services.inference.backends.remote.http_server_client import Server
from services.inference.jobs.embedding_interface import VectorSink
from services.inference.jobs.embedding_job import EmbeddingJob
from shared.api.embedding import Embedded, Vectors
from shared.telemetry import logs

log = logs.get()

#: In one message of the mesh, which may have 1 MiB.
SENT_BYTES = 256 * 1024

#: Asks the server for the vectors of some texts; raises an AimeshError.
Ask = Callable[[tuple[str, ...]], Awaitable[Answered]]


async def embed(server: Server, job: EmbeddingJob, ask: Ask, sink: VectorSink) -> Embedded:
    """Raises what ``ask`` raises, and Unavailable for vectors that cannot be the texts'. Being cancelled ends it within a batch."""
    gathering, is_accepted = EmbeddingAssembly(job), False
    for texts in gathering.batches():
        answered = await ask(texts)
        async with http_server_client.translated(server.source):
            vectors = gathering.take(texts, answered)
        if not is_accepted:
            # How many tokens the texts have the last batch will tell.
            sink.accept(None)
            is_accepted = True
        for some in _messages(vectors):
            await sink.send(Vectors(some))
    if gathering.recounted:
        log.warning("usage_recounted", server=server.source.name, model=job.model, fields=("prompt_tokens",))
    return gathering.embedded


def _messages(vectors: list[bytes]) -> Iterator[tuple[bytes, ...]]:
    """All are of one length."""
    together = max(1, SENT_BYTES // len(vectors[0]))
    for start in range(0, len(vectors), together):
        yield tuple(vectors[start : start + together])
