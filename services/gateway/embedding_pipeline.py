"""The way of a request for embeddings: admit, limit, choose a worker, pass on, record. As the pipeline's own of a prompt.

async with embeddings.run(principal, request, seconds=60) as running:
    async for vectors in running: …
running.result
"""

import math
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from services.gateway import prompt_fingerprint
from services.gateway.active_request import ActiveRequest
from services.gateway.admission import prompt_admission
from services.gateway.admission.prompt_admission import AdmittedEmbedding
from services.gateway.billing.ledger import CostBounds
from services.gateway.failover.relay import Embedding
from services.gateway.pipeline import Pipeline, PipelineDependencies
from services.gateway.scheduling.routing import WorkerRequirements
from shared import errors
from shared.api import embedding
from shared.api.auth import Principal
from shared.api.embedding import Embedded, EmbeddingRequest, EmbeddingResult, Vectors
from shared.api.generation import Usage

#: Each number of a vector has four bytes.
NUMBER_BYTES = 4


class ActiveEmbedding(ActiveRequest):
    """Iterate it for the vectors; ``result`` is there when the block of ``run`` is left."""

    method = embedding.request_embeddings.name.partition(".")[2]
    answers: AsyncGenerator[Embedding] | None

    admitted: AdmittedEmbedding | None = None
    _prompt_tokens = 0
    _vectors = 0
    #: Of every vector, as the first one has them.
    _dimensions = 0
    _complete = False

    def __aiter__(self) -> "ActiveEmbedding":
        return self

    async def __anext__(self) -> Vectors:
        """Vectors, or what they wait for. Raises ProtocolViolation for a worker that sends what is none."""
        assert self.answers is not None  # `run` has set it before anybody sees this object
        while True:
            answer = await anext(self.answers)
            if isinstance(answer, Vectors):
                for vector in answer.vectors:
                    self._take(vector)
                return answer
            self._prompt_tokens = answer.prompt_tokens
            if isinstance(answer, Embedded):
                self._end()

    @property
    def usage(self) -> Usage:
        # More than there can be is not believed.
        most = self.admitted.most_prompt_tokens if self.admitted is not None else 0
        return Usage(min(max(self._prompt_tokens, 0), most), completion_tokens=0)

    @property
    def complete(self) -> bool:
        return self._complete

    @property
    def result(self) -> EmbeddingResult:
        assert self.model is not None
        return EmbeddingResult(self.request_id, self.model, self._dimensions, self.usage.prompt_tokens, self.response_time_ms)

    def _take(self, vector: bytes) -> None:
        assert self.admitted is not None
        self._vectors += 1
        numbers, over = divmod(len(vector), NUMBER_BYTES)
        self._dimensions = self._dimensions or numbers
        wanted = self.admitted.dimensions or self._dimensions
        if over or not 0 < numbers == wanted == self._dimensions <= embedding.MAX_DIMENSIONS or self._vectors > len(self.admitted.inputs):
            raise errors.ProtocolViolation(f"the worker sent {len(vector)} bytes as vector {self._vectors}", hint="try again")
        if not math.isfinite(math.hypot(*struct.unpack(f"<{numbers}f", vector))):
            raise errors.ProtocolViolation(f"the worker sent no numbers as vector {self._vectors}", hint="try again")

    def _end(self) -> None:
        assert self.admitted is not None
        if self._vectors != len(self.admitted.inputs):
            raise errors.ProtocolViolation(
                f"the worker sent {self._vectors} vectors for {len(self.admitted.inputs)} texts", hint="try again"
            )
        self._complete = True


class EmbeddingPipeline:
    """Safe for any number of requests at once."""

    def __init__(self, pipeline: Pipeline, parts: PipelineDependencies) -> None:
        self._pipeline = pipeline
        self._parts = parts

    @asynccontextmanager
    async def run(self, principal: Principal, request: EmbeddingRequest, *, seconds: float) -> AsyncIterator[ActiveEmbedding]:
        """Raises what a caller may see, as ``Pipeline.run``. An exception out of the block, a cancel included, ends the work."""
        running = ActiveEmbedding(self._pipeline.clock)
        async with self._pipeline.recorded(running, principal, seconds=seconds):
            admitted = running.admitted = prompt_admission.admit_texts(request)
            running.prompt_hash = prompt_fingerprint.fingerprint(admitted.inputs, self._parts.prompt_hash_secret)
            model = await self._pipeline.find_model(running, admitted.model, for_answers=False)
            prompt_admission.check_open(principal, model)
            bounds = CostBounds(model=model, prompt_tokens=admitted.most_prompt_tokens, max_tokens=0, answers=1, seconds=seconds)
            wish = WorkerRequirements(model, principal.tenant_id, principal.limited_as, admitted.likely_prompt_tokens, 0)
            await self._pipeline.let_in(running, principal, wish, bounds)
            asked = embedding.Embed(model, admitted.inputs, running.request_id, admitted.dimensions)
            running.answers = self._parts.relay.embed(asked, wish, seconds=seconds, runs_on=lambda claim, _: running.runs_on(claim))
            yield running
