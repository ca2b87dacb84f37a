"""Guards an answer chunk by chunk. Pure: the same chunks give the same result, so that a resumed stream continues exactly."""

from collections.abc import Collection

import msgspec

from services.gateway.guard.guard_rules import GuardScan
from services.gateway.guard.guarded_text import GuardedText, GuardMatches, guard_json
from shared.api.generation import Generation, ToolCall
from shared.api.inference import Chunk
from shared.config_documents import GuardKind
from shared.types import FinishReason


class AnswerGuard:
    """Guards one request's answers, each with its own text."""

    def __init__(self, scan: GuardScan) -> None:
        self._scan = scan
        self.matches: GuardMatches = GuardMatches()
        self._texts: dict[int, GuardedText] = {}
        #: The answers that end early, and the kinds that were found there.
        self.refused: dict[int, GuardKind] = {}

    def read(self, chunk: Chunk) -> Chunk | None:
        """Return what the caller gets of it now; None for nothing."""
        if chunk.waiting:
            return chunk
        if chunk.answer in self.refused:
            return None
        if not self._scan.changes_text:
            self._text(chunk.answer).feed(chunk.text)
            for call in chunk.tool_calls:
                guard_json(call.arguments, self._scan, self.matches)
            return chunk
        text = self._text(chunk.answer)
        shown = text.feed(chunk.text) if chunk.text else ""
        if chunk.finish is not None or chunk.tool_calls:
            # Calls come behind the text.
            shown += self._end(chunk.answer)
        self._note(chunk.answer, text)
        calls = () if chunk.answer in self.refused else tuple(self._calls(chunk))
        if not shown and not calls:
            return None
        # Token ids would tell what is masked.
        return Chunk(shown, (), answer=chunk.answer, tool_calls=calls, finish=chunk.finish)

    def end(self) -> list[Chunk]:
        """Return the rest of each answer."""
        found = []
        for answer in sorted(self._texts):
            text = self._texts[answer]
            shown = self._end(answer)
            self._note(answer, text)
            if shown:
                found.append(Chunk(shown, (), answer=answer))
        return found

    def ended(self, generation: Generation) -> Generation:
        """Return the end as the caller sees it."""
        return filtered(generation, self.refused)

    def _text(self, answer: int) -> GuardedText:
        if answer not in self._texts:
            self._texts[answer] = GuardedText(self._scan, self.matches)
        return self._texts[answer]

    def _end(self, answer: int) -> str:
        # What comes after a tool call is another text.
        return self._texts.pop(answer).end()

    def _note(self, answer: int, text: GuardedText) -> None:
        if text.refused is not None:
            self.refused[answer] = text.refused

    def _calls(self, chunk: Chunk) -> list[ToolCall]:
        calls = []
        for call in chunk.tool_calls:
            arguments, refused = guard_json(call.arguments, self._scan, self.matches)
            if refused is not None:
                self.refused[chunk.answer] = refused
                break
            calls.append(ToolCall(call.id, call.name, arguments))
        return calls


def filtered(generation: Generation, refused: Collection[int]) -> Generation:
    """Return the end as the caller sees it, if these answers were refused."""
    if not refused:
        return generation
    reasons = list(generation.finish_reasons or (generation.finish_reason,))
    reasons += [FinishReason.CONTENT_FILTER] * (max(refused) + 1 - len(reasons))
    for answer in refused:
        reasons[answer] = FinishReason.CONTENT_FILTER
    return msgspec.structs.replace(generation, finish_reason=reasons[0], finish_reasons=tuple(reasons) if len(reasons) > 1 else ())
