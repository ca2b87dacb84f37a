"""Follows the tool calls of one answer, which arrive in parts from workers and complete from the guard. Pure."""

from dataclasses import dataclass, field

import msgspec

from shared.api.generation import ToolCall, ToolCallPart
from shared.api.inference import Chunk
from shared.types import FinishReason


@dataclass(slots=True)
class _WrittenCall:
    id: str
    name: str
    is_complete: bool
    arguments: list[str] = field(default_factory=list)

    @property
    def call(self) -> ToolCall:
        return ToolCall(self.id, self.name, "".join(self.arguments))


class CallParts:
    def __init__(self, *, parallel: bool = True) -> None:
        """``parallel``: False ignores all calls but the first."""
        self._parallel = parallel
        self._calls: list[_WrittenCall] = []
        #: How many calls ``complete`` has returned or dropped.
        self._returned = 0

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Return all calls as far as they are written."""
        return tuple(call.call for call in self._calls)

    def add(self, chunk: Chunk) -> list[ToolCallPart]:
        """Return the new parts; a complete call is one part. Ignore parts of unknown calls."""
        found: list[ToolCallPart] = []
        for part in chunk.call_parts:
            found += self._take(part, is_complete=False)
        for call in chunk.tool_calls:
            found += self._take(ToolCallPart(len(self._calls), call.arguments, call.id, call.name), is_complete=True)
        return [*found, *self._fill()] if chunk.finish is FinishReason.STOP else found

    def complete(self, chunk: Chunk) -> tuple[ToolCall, ...]:
        """Add a chunk; return the calls that are complete with it: up to the last one, which ends with its answer. An answer that was cut
        off may leave its last call unfinished, and nobody should run that."""
        self.add(chunk)
        until = len(self._calls)
        if chunk.finish is None and self._calls and not self._calls[-1].is_complete:
            until -= 1
        calls = [found.call for found in self._calls[self._returned : until]]
        self._returned = until
        if calls and chunk.finish not in {None, FinishReason.STOP} and not _is_json(calls[-1].arguments):
            del calls[-1]
        return tuple(calls)

    def _take(self, part: ToolCallPart, *, is_complete: bool) -> list[ToolCallPart]:
        if part.index > (len(self._calls) if self._parallel else 0):
            return []
        filled = []
        if part.index == len(self._calls):
            filled = self._fill()
            self._calls.append(_WrittenCall(part.id, part.name, is_complete))
        call = self._calls[part.index]
        call.arguments.append(part.arguments)
        call.is_complete = is_complete
        return [*filled, part]

    def _fill(self) -> list[ToolCallPart]:
        """End the last call. Some servers write no arguments for a tool without parameters, but callers expect JSON."""
        if not self._calls or self._calls[-1].is_complete or any(self._calls[-1].arguments):
            return []
        self._calls[-1].arguments.append("{}")
        return [ToolCallPart(len(self._calls) - 1, "{}")]


def pieces_of(chunk: Chunk) -> tuple[ToolCall | ToolCallPart, ...]:
    return (*chunk.tool_calls, *chunk.call_parts)


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
