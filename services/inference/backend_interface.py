"""The interface between the service and the backends, which run the models."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import Protocol, TypeAlias, TypeVar

from services.inference.engine_speed import EngineSpeed
from services.inference.jobs import GenerationJob
from services.inference.models.catalog import Defaults
from shared import errors
from shared.api.embedding import Embed, Embedded, Vectors
from shared.api.generation import GenerationEnd
from shared.api.inference import Chunk, Conversion, ModelFacts, ModelFit, ModelStatus, Moderate, Moderated
from shared.types import LoadPurpose, ModelName

Sent_contra = TypeVar("Sent_contra", contravariant=True)


class WarningTopic(Enum):
    """What a warning is about; a newer warning replaces the older one of its topic."""

    DEVICES = "devices"
    SWAPS = "swaps"
    TRUST = "trust"


class Watcher(Protocol):
    """Observes a backend's models. Its methods never block or raise."""

    def changed(self) -> None:
        """A status may have changed. Safe to call at any time."""
        ...

    def load_changed(self) -> None:
        """Only how busy a model is may have changed."""
        ...

    def memory_found(self, free_bytes: int) -> None:
        """The backend has so much memory for models."""
        ...

    def restarting(self, model: ModelName) -> None:
        """A model's engine died and is being restarted."""
        ...

    def parse_failed(self, model: ModelName) -> None:
        """An answer was not what the model's chat template describes, or its parser was lost. The rest of it is text."""
        ...

    def warn(self, text: str, topic: WarningTopic) -> None:
        """The worker works, but not as well as it could, for people; empty if it does."""
        ...

    def swapped(self, model: ModelName) -> None:
        """A model is unloaded because another one needs its memory."""
        ...

    def images_encoded(self, model: ModelName, seconds: float) -> None:
        """A prompt's images were encoded."""
        ...

    def preempted(self, model: ModelName, answers: int) -> None:
        """So many batch answers have lost their slots."""
        ...

    def drafted(self, model: ModelName, tokens: int, accepted: int) -> None:
        """A step computed so many guessed tokens of an answer, of which ``accepted`` were right."""
        ...


class AnswerSink(Protocol[Sent_contra]):
    """Receives an answer in pieces: a mesh stream or an HTTP response."""

    def accept(self, prompt_tokens: int | None) -> None:
        """The prompt was accepted and queued. ``prompt_tokens`` is None if the count is known only at the end."""
        ...

    async def send(self, item: Sent_contra) -> None:
        """Waits for a slow reader. Raises CancelledError once the reader is gone."""
        ...


Sink: TypeAlias = AnswerSink[Chunk]
VectorSink: TypeAlias = AnswerSink[Vectors]


class UncountedSink:
    """The base of sinks that don't need the count of a prompt's tokens, or get it from the usage at the end."""

    def accept(self, prompt_tokens: int | None) -> None:
        """Does nothing."""


class CollectedChunks(UncountedSink):
    """Keeps an answer; ``max_tokens`` bounds its size."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    async def send(self, item: Chunk) -> None:
        self.chunks.append(item)


class AnswerStopped(Exception):
    """One of several answers has ended for its reader, before it ended for the engine."""


class AnswersEnded(Exception):
    """All answers have ended for their reader, perhaps before they ended for the engine."""


class Backend(ABC):
    """Runs models. Each backend module's ``opened`` is an async context manager that creates one. What only some can do is refused here."""

    name: str
    #: Whether the models run in this worker's own processes: people can load and unload them, and their speed is known.
    has_engines = False

    @abstractmethod
    def models(self) -> tuple[ModelStatus, ...]:
        """Return the status of every configured model, failed ones included. Never blocks."""

    @abstractmethod
    async def generate(self, job: GenerationJob, sink: Sink) -> GenerationEnd:
        """Run one of its models. Raises BadRequest, Overloaded (queue full), Unavailable (not loaded) or ModelCrashed.
        Cancelling the task stops the generation within one step; ``max_tokens`` bounds what it may buffer."""

    @abstractmethod
    def expected_wait_seconds(self) -> float:
        """Estimate the queueing time of a new job on the busiest model."""

    async def embed(self, job: Embed, sink: VectorSink) -> Embedded:
        """Compute the vectors of all texts, in order. Raises BadRequest, Overloaded, Unavailable or ModelCrashed. Cancelling the
        task stops it within one batch."""
        raise errors.UnknownMethod(f"the backend {self.name} has no embeddings", hint="use a worker with another backend")

    async def moderate(self, request: Moderate) -> Moderated:
        """Say whether the texts are harmful, by a model that only moderates. Raises BadRequest, Overloaded or Unavailable. Cancelling the
        task stops it."""
        raise NotImplementedError

    async def convert(self, request: Conversion) -> bytes:
        """Return token ids, of TOKEN_BYTES each, or a text in UTF-8; at most MAX_CONVERTED_BYTES. Raises BadRequest, Overloaded,
        Unavailable or ModelCrashed. Needs no slot."""
        what = f"{request.model} runs in another program, whose tokens this worker does not know"
        raise errors.UnknownMethod(what, hint="ask the server itself, or use a model of another backend")

    async def load(self, model: ModelName, *, pin: bool | None = None, purpose: LoadPurpose | None = None) -> ModelStatus:
        """Return when the model is loaded; raises Unavailable with the reason. ``pin`` sets or removes its pin. A model that is loaded for
        another ``purpose`` is unloaded first; raises Overloaded while it has requests.
        Cancelling stops the waiting, not the load. Only if it ``has_engines``."""
        raise NotImplementedError

    async def unload(self, model: ModelName) -> ModelStatus:
        """Return when the model's memory is free; raises Overloaded while it has requests. Only if it ``has_engines``."""
        raise NotImplementedError

    async def plan(self, models: Sequence[ModelFacts], defaults: Defaults) -> list[ModelFit]:
        """Plan models that it doesn't have, each beside those that it has. Only if it ``has_engines``."""
        raise NotImplementedError

    def figures(self, model: ModelName) -> EngineSpeed:
        """Return the model's speed over the last seconds. Never blocks. Only if it ``has_engines``."""
        raise NotImplementedError
