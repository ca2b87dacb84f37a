"""A worker that thinks, and sends tool calls in parts."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from services.gateway.facts.call_parts import CallParts
from shared import errors
from shared.api.generation import GenerationEnd, ToolCall, ToolCallPart, Usage
from shared.api.inference import Chunk, ProcessPrompt
from shared.types import FinishReason
from tests.services.gateway.fakes import FakeWorker

THOUGHTS, TEXT = "Let me think.", "I look."
CALLS = (ToolCall("c1", "look_up", '{"a":1}'), ToolCall("c2", "look_up", "{}"))
ANSWER = (
    Chunk("", (1,), reasoning="Let me"),
    Chunk("", (2,), reasoning=" think."),
    Chunk("I look.", (3,)),
    Chunk("", (4,), call_parts=(ToolCallPart(0, "", "c1", "look_up"),)),
    Chunk("", (5,), call_parts=(ToolCallPart(0, '{"a":'),)),
    Chunk("", (6,), call_parts=(ToolCallPart(0, "1}"), ToolCallPart(1, "{}", "c2", "look_up"))),
    Chunk("", (7,), finish=FinishReason.STOP),
)


@dataclass
class Thinks(FakeWorker):
    """Resumes after what was delivered. Without tools, it only thinks and answers."""

    #: It is lost once before each of these tokens.
    falls: list[int] = field(default_factory=list)
    chunks: tuple[Chunk, ...] = ANSWER

    async def run(self, prompt: ProcessPrompt) -> AsyncIterator[Chunk | GenerationEnd]:
        chunks = self.chunks if prompt.model_config.tools else self.chunks[:3]
        for position, chunk in enumerate(chunks):
            if position >= len(prompt.delivered):
                if self.falls and self.falls[0] == position:
                    raise errors.LinkLost(f"lost before token {self.falls.pop(0)}")
                yield chunk
        thoughts = max(0, 2 - len(prompt.delivered))
        yield GenerationEnd(FinishReason.STOP, Usage(7, len(chunks) - len(prompt.delivered), reasoning_tokens=thoughts))


def read(chunks: Iterable[Chunk]) -> tuple[str, str, tuple[ToolCall, ...]]:
    """Return thoughts, text and calls."""
    found, calls = list(chunks), CallParts()
    for chunk in found:
        calls.add(chunk)
    return "".join(chunk.reasoning for chunk in found), "".join(chunk.text for chunk in found), calls.calls
