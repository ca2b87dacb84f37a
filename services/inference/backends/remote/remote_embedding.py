"""Runs embedding jobs on another program's server, batch by batch."""

from collections.abc import Awaitable, Callable, Iterator

from services.inference.backends.remote import http_server_client
from services.inference.backends.remote.embedding_answer import EmbeddingAssembly, EmbeddingReply
from services.inference.backends.remote.http_server_client import Server
from services.inference.jobs.backend_interface import VectorSink
from services.inference.jobs.embedding_job import EmbeddingJob
from shared.api.embedding import Embedded, Vectors
from shared.telemetry import logs

log = logs.get()

#: Of one message to the mesh, which allows 1 MiB.
SENT_BYTES = 256 * 1024

#: Gets the vectors of some texts from the server; raises an AimeshError.
RequestEmbeddings = Callable[[tuple[str, ...]], Awaitable[EmbeddingReply]]


async def embed(server: Server, job: EmbeddingJob, request: RequestEmbeddings, sink: VectorSink) -> Embedded:
    """Get the vectors of a job batch by batch. Raises what ``request`` raises, and Unavailable for vectors that can't be the texts'."""
    assembly, is_accepted = EmbeddingAssembly(job), False
    for texts in assembly.batches():
        reply = await request(texts)
        async with http_server_client.translated(server.source):
            vectors = assembly.take(texts, reply)
        if not is_accepted:
            # The token count is only known after the last batch.
            sink.accept(None)
            is_accepted = True
        for some in _messages(vectors):
            await sink.send(Vectors(some))
    if assembly.recounted:
        log.warning("usage_recounted", server=server.source.name, model=job.model, fields=("prompt_tokens",))
    return assembly.embedded


def _messages(vectors: list[bytes]) -> Iterator[tuple[bytes, ...]]:
    together = max(1, SENT_BYTES // len(vectors[0]))
    for start in range(0, len(vectors), together):
        yield tuple(vectors[start : start + together])
