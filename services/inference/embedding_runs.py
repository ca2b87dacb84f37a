"""A request for vectors, run on a backend and measured."""

from services.inference.jobs import embedding_job
from services.inference.jobs.backend_interface import Backend
from services.inference.jobs.embedding_interface import Embeds, VectorSink
from shared import errors, telemetry
from shared.api import embedding
from shared.api.embedding import Embedded, Vectors
from shared.api.inference import PromptAccepted
from shared.rpc import StreamCall
from shared.telemetry import logs
from shared.telemetry.answer_metrics import WorkerAnswers
from shared.types import ModelName

log = logs.get()

#: As the metrics name it.
_METHOD = embedding.embed.name.partition(".")[2]


async def run(backend: Backend, model: ModelName, request: embedding.Embed, sink: VectorSink, metrics: telemetry.Metrics) -> Embedded:
    """``model`` is the backend's own name for it. Raises BadRequest, UnknownMethod where the backend gives no vectors, and what it
    raises."""
    job = embedding_job.check(model, request)
    if not isinstance(backend, Embeds):
        raise errors.UnknownMethod(f"the backend {backend.name} gives no embeddings", hint="ask a worker with another backend")
    with WorkerAnswers(metrics, backend.name).serving("embeddings", _METHOD, model) as served:
        try:
            embedded = await backend.embed(job, sink)
        finally:
            log.info("embedding ended", model=model, texts=len(job.inputs), milliseconds=round(served.seconds * 1000))
        served.input_tokens = embedded.prompt_tokens
    return embedded


class MeshVectorSink:
    """The stream of a call."""

    def __init__(self, stream: StreamCall[Vectors]) -> None:
        self._stream = stream
        self.send = stream.send

    def accept(self, prompt_tokens: int | None) -> None:
        self._stream.accept(None if prompt_tokens is None else PromptAccepted(prompt_tokens))
