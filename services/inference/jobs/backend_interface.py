"""What every way of running models looks like to the service."""

from typing import Protocol, runtime_checkable

from services.inference.jobs.engine_speed import EngineSpeed
from services.inference.jobs.generation_job import GenerationJob
from shared.api.generation import Generation
from shared.api.inference import Chunk, ModelStatus
from shared.types import ModelName


class Watcher(Protocol):
    """Who wants to know about a backend's models. Never waits, never raises."""

    def changed(self) -> None:
        """Some status is different from before. Safe to call too often."""
        ...

    def restarting(self, model: ModelName) -> None:
        """The engine of a model died and is started again."""
        ...


class Sink(Protocol):
    """Where the pieces of an answer go: a mesh stream, or an HTTP answer."""

    def accept(self, prompt_tokens: int | None) -> None:
        """The prompt is understood and queued. None where only the end will tell how many tokens it has."""
        ...

    async def send(self, item: Chunk) -> None:
        """Waits for a slow reader. Raises CancelledError when there is no reader any more."""
        ...


class Backend(Protocol):
    """Some models and a way of running them. Opened as an async context manager by its module's ``opened``."""

    #: The name of the setting INFERENCE_BACKEND that chooses it.
    name: str

    def models(self) -> tuple[ModelStatus, ...]:
        """Every model it serves, should serve, or failed to load. Never waits."""
        ...

    async def generate(self, job: GenerationJob, sink: Sink) -> Generation:
        """Run one of its models. Raises BadRequest, Overloaded (queue full), Unavailable (not loaded) or ModelCrashed.
        Cancelling the task stops the generation within one step; ``max_tokens`` bounds what it may buffer."""
        ...

    def expected_wait_seconds(self) -> float:
        """How long a new job would wait for its turn on the busiest model."""
        ...


@runtime_checkable
class Loader(Protocol):
    """A backend that holds its models in this machine's memory, and lets people say which."""

    async def load(self, model: ModelName, *, pin: bool | None = None) -> ModelStatus:
        """Returns when the model is loaded, at once if it is; raises Unavailable with the reason. With ``pin`` it stays from
        now on, or no longer has to. Cancelling stops the waiting and not the load."""
        ...

    async def unload(self, model: ModelName) -> ModelStatus:
        """Returns when its memory is free, at once if it was not loaded; raises Overloaded while it has requests."""
        ...


@runtime_checkable
class Measured(Protocol):
    """A backend that knows how fast it computes."""

    def figures(self, model: ModelName) -> EngineSpeed:
        """Of the last seconds. Never waits."""
        ...
