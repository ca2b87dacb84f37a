"""Passes an engine's answers on to their reader: thoughts, content and tool calls apart, and only up to a stop sequence.

A token is sent with the text that it settled, so that another worker can resume the answer behind any token: it reads the delivered text
again, sends nothing of it, and continues.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from services.inference.backend_interface import AnswersEnded, AnswerStopped, Sink
from services.inference.chat.answer_text import AnswerMarks, AnswerSeparator, SeparatedPiece, TextChannel
from services.inference.chat.chat_client import ChatClient
from services.inference.chat.chat_messages import RenderedPrompt
from services.inference.chat.stop_sequences import StopSequences
from services.inference.engine import sequence
from services.inference.jobs import GenerationJob
from shared.api.generation import GenerationEnd, ToolCallPart
from shared.api.inference import Chunk, TokenLogprob
from shared.types import FinishReason

_ID_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_CHARACTERS = 24


@dataclass(slots=True)
class _ShownParts:
    """What a piece of an answer adds for its reader."""

    text: str = ""
    reasoning: str = ""
    parts: list[ToolCallPart] = field(default_factory=list)


class _SeparatedAnswer:
    """The state of one answer."""

    def __init__(self, marks: AnswerMarks | None, stops: tuple[str, ...], request: str) -> None:
        #: None if all of the answer is content.
        self.separator = None if marks is None else AnswerSeparator(marks)
        self._request = request
        self._stops = StopSequences(stops)
        #: Tokens whose text isn't settled, with their logprobs and the length of the answer behind them.
        self._held: list[tuple[int, TokenLogprob | None, int]] = []
        self._length = 0
        self._thinks = False
        self._is_thinking = True
        self.thought_tokens = 0
        self.tokens = 0
        self.finish: FinishReason | None = None

    @property
    def stopped_by(self) -> str | None:
        return self._stops.found

    @property
    def is_stopped(self) -> bool:
        return self.stopped_by is not None

    def add(self, chunk: Chunk) -> None:
        self._length += len(chunk.text)
        logprobs = chunk.logprobs or (None,) * len(chunk.token_ids)
        self._held += [(token, logprob, self._length) for token, logprob in zip(chunk.token_ids, logprobs, strict=True)]

    def resumed(self, delivered: str, pieces: tuple[SeparatedPiece, ...]) -> None:
        self._length = len(delivered)
        self.show(pieces)

    def show(self, pieces: tuple[SeparatedPiece, ...]) -> _ShownParts:
        shown = _ShownParts()
        for piece in pieces:
            if piece.channel is TextChannel.REASONING:
                shown.reasoning += piece.text
                self._thinks = True
                continue
            self._is_thinking = False
            if piece.channel is TextChannel.CALL:
                shown.text += self._stops.finish()
                call_id = (piece.id or call_id_of(self._request, piece.call)) if piece.name else ""
                shown.parts.append(ToolCallPart(piece.call, piece.text, call_id, piece.name))
            else:
                shown.text += self._stops.push(piece.text)
            if self.is_stopped:
                break
        return shown

    def end(self, shown: _ShownParts) -> None:
        """Add what only the end settles."""
        if not self.is_stopped:
            shown.text += self._stops.finish()

    def settled(self, *, all_of_it: bool) -> tuple[tuple[int, ...], tuple[TokenLogprob, ...]]:
        """Return the tokens whose text is settled, once."""
        until = self._length if all_of_it or self.separator is None else self.separator.settled
        count = sum(length <= until for _, _, length in self._held)
        settled, self._held = self._held[:count], self._held[count:]
        self.tokens += count
        self.thought_tokens += count if self._is_thinking else 0
        return tuple(token for token, _, _ in settled), tuple(logprob for _, logprob, _ in settled if logprob is not None)

    @property
    def reasoning_tokens(self) -> int:
        return self.thought_tokens if self._thinks else 0


class SeparatedAnswers:
    """The sink of one request."""

    def __init__(
        self, client: ChatClient | None, rendered: RenderedPrompt, job: GenerationJob, sink: Sink, failed: Callable[[], None]
    ) -> None:
        self._client = client
        self._parser = rendered.parser
        self._sink = sink
        self._failed = failed
        self._asked_stops = job.parameters.stop
        #: The first text is what another worker delivered.
        self._resumes = bool(job.delivered)
        marks = AnswerMarks.of(rendered) if client is not None else None
        stops = (*job.parameters.stop, *rendered.stops)
        self._answers = [_SeparatedAnswer(marks, stops, f"{job.request}/{answer}") for answer in range(job.parameters.n)]

    def accept(self, prompt_tokens: int | None) -> None:
        self._sink.accept(prompt_tokens)

    async def send(self, item: Chunk) -> None:
        """Raises AnswerStopped after an answer that a stop sequence ended, AnswersEnded after the last answer, and BadRequest if the caller
        already has the whole answer."""
        answer = self._answers[item.answer]
        if answer.finish is not None:
            return
        if item.waiting:
            await self._sink.send(item)
            return
        if self._resumes:
            self._resumes = False
            await self._resume(answer, item.text)
            return
        answer.add(item)
        is_last = item.finish is not None
        shown = answer.show(await self._separated(answer, item.text, last=is_last))
        answer.finish = FinishReason.STOP if answer.is_stopped else item.finish
        if answer.finish is not None:
            answer.end(shown)
        tokens, logprobs = answer.settled(all_of_it=answer.finish is not None)
        if tokens or shown.text or shown.reasoning or shown.parts or answer.finish is not None:
            await self._sink.send(
                Chunk(
                    *(shown.text, tokens, item.answer, logprobs),
                    finish=answer.finish,
                    reasoning=shown.reasoning,
                    call_parts=tuple(shown.parts),
                )
            )
        if all(one.finish is not None for one in self._answers):
            raise AnswersEnded
        if answer.finish is not None and not is_last:
            raise AnswerStopped

    def complete(self, generation: GenerationEnd) -> GenerationEnd:
        """Return the result of the engine with the counts and reasons of what was sent."""
        reasons = tuple(answer.finish or FinishReason.STOP for answer in self._answers)
        usage = msgspec.structs.replace(
            generation.usage,
            completion_tokens=sum(answer.tokens for answer in self._answers),
            reasoning_tokens=sum(answer.reasoning_tokens for answer in self._answers),
        )
        stopped_by = self._answers[0].stopped_by
        # A template has its own ones.
        return GenerationEnd(
            reasons[0],
            usage,
            reasons if len(reasons) > 1 else (),
            stopped_by if stopped_by in self._asked_stops else None,
            generation.computed_seconds,
        )

    async def _separated(self, answer: _SeparatedAnswer, text: str, *, last: bool) -> tuple[SeparatedPiece, ...]:
        if self._client is None or answer.separator is None:
            return (SeparatedPiece(TextChannel.CONTENT, text),) if text else ()
        had_failed = answer.separator.failed
        pieces = await self._client.separate(answer.separator.feed(text, last=last), self._parser)
        if answer.separator.failed and not had_failed:
            self._failed()
        return pieces

    async def _resume(self, answer: _SeparatedAnswer, delivered: str) -> None:
        pieces: tuple[SeparatedPiece, ...] = (SeparatedPiece(TextChannel.CONTENT, delivered),)
        if self._client is not None and answer.separator is not None:
            pieces = await self._client.separate(answer.separator.resume(delivered), self._parser)
        answer.resumed(delivered, pieces)
        if answer.is_stopped:
            raise sequence.already_complete()


def call_id_of(request: str, index: int) -> str:
    """Return the id of a call, which is the same for a request on every worker, so that another one can continue the answer."""
    number = int.from_bytes(hashlib.sha256(f"{request}\0{index}".encode()).digest())
    characters = (_ID_ALPHABET[number // len(_ID_ALPHABET) ** place % len(_ID_ALPHABET)] for place in range(_ID_CHARACTERS))
    return "call_" + "".join(characters)
