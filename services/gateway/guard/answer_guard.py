"""Guards an answer chunk by chunk. Pure: the same chunks give the same result, so that a resumed stream continues exactly."""

from collections.abc import Collection, Iterable

import msgspec

from services.gateway.facts.call_parts import CallParts
from services.gateway.facts.guardrails import GuardScan
from services.gateway.guard.guarded_text import GuardedText, GuardMatches, guard_json, guard_whole
from shared.api.generation import GenerationEnd, ToolCall
from shared.api.inference import Chunk
from shared.config_documents import GuardKind
from shared.types import FinishReason


class AnswerGuard:
    """Guards one request's answers, each with its own text and thoughts."""

    def __init__(self, scan: GuardScan) -> None:
        self._scan = scan
        self.matches: GuardMatches = GuardMatches()
        #: Key: the answer, and whether it is its text rather than its thoughts.
        self._texts: dict[tuple[int, bool], GuardedText] = {}
        self._parts: dict[int, CallParts] = {}
        #: The answers that end early, and the kinds that were found there.
        self.refused: dict[int, GuardKind] = {}

    def read(self, chunk: Chunk) -> Chunk | None:
        """Return what the caller gets of it now; None for nothing."""
        if chunk.waiting:
            return chunk
        if chunk.answer in self.refused:
            return None
        # Arguments are guarded as a whole.
        calls = self._parts.setdefault(chunk.answer, CallParts()).complete(chunk)
        ends = chunk.finish is not None or bool(chunk.tool_calls or chunk.call_parts)
        # Thoughts come before the text, and calls after it.
        reasoning = self._feed(chunk.answer, chunk.reasoning, is_text=False, ends=ends or bool(chunk.text))
        shown = self._feed(chunk.answer, chunk.text, is_text=True, ends=ends)
        guarded = tuple(self._calls(chunk.answer, calls))
        if not self._scan.changes_text:
            return chunk
        if not shown and not reasoning and not guarded:
            return None
        # Token ids would reveal what is masked.
        return Chunk(shown, (), answer=chunk.answer, tool_calls=guarded, finish=chunk.finish, reasoning=reasoning)

    def end(self) -> list[Chunk]:
        """Return the rest of each answer."""
        found = []
        for answer, is_text in sorted(self._texts):
            shown = self._feed(answer, "", is_text=is_text, ends=True)
            if shown:
                found.append(Chunk(shown if is_text else "", (), answer=answer, reasoning="" if is_text else shown))
        return found

    def _feed(self, answer: int, piece: str, *, is_text: bool, ends: bool) -> str:
        key = answer, is_text
        if answer in self.refused or not (piece or key in self._texts):
            return ""
        if key not in self._texts:
            self._texts[key] = GuardedText(self._scan, self.matches)
        text = self._texts[key]
        shown = text.feed(piece) if piece else ""
        if ends:
            # What comes after a tool call is another text.
            shown += self._texts.pop(key).end()
        if text.refused is not None:
            self.refused[answer] = text.refused
        return shown

    def _calls(self, answer: int, complete: Iterable[ToolCall]) -> list[ToolCall]:
        calls: list[ToolCall] = []
        for call in complete if answer not in self.refused else ():
            name, refused = guard_whole(call.name, self._scan, self.matches)
            arguments = ""
            if refused is None:
                arguments, refused = guard_json(call.arguments, self._scan, self.matches)
            if refused is not None:
                self.refused[answer] = refused
                break
            calls.append(ToolCall(call.id, name, arguments))
        return calls


def filtered(generation: GenerationEnd, refused: Collection[int]) -> GenerationEnd:
    """Return the end as the caller sees it, if these answers were refused."""
    if not refused:
        return generation
    reasons = list(generation.finish_reasons or (generation.finish_reason,))
    reasons += [FinishReason.CONTENT_FILTER] * (max(refused) + 1 - len(reasons))
    for answer in refused:
        reasons[answer] = FinishReason.CONTENT_FILTER
    return msgspec.structs.replace(generation, finish_reason=reasons[0], finish_reasons=tuple(reasons) if len(reasons) > 1 else ())
