"""Create jobs with the caller's own parameters, and record what backends log."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from services.inference.jobs import GenerationJob
from shared.api.generation import ChatMessage, Sampling
from shared.telemetry import logs
from tests.services.inference import standins


def job(prompt: str | tuple[ChatMessage, ...] = "hi", *, model: str, max_tokens: int = 100, **sampling: object) -> GenerationJob:
    plain = standins.job(prompt, model=model, max_tokens=max_tokens)
    return replace(plain, requested=Sampling(max_tokens=max_tokens, **sampling))  # type: ignore[arg-type]


@contextmanager
def logged() -> Iterator[list[tuple[str, Mapping[str, object]]]]:
    """Yield every log event with its fields."""
    events: list[tuple[str, Mapping[str, object]]] = []
    before = logs._write
    logs._write = lambda _, event, fields: events.append((event, fields))
    try:
        yield events
    finally:
        logs._write = before
