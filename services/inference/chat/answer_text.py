"""Separates an answer's raw text into thoughts, content and tool calls while it is written. Pure: the parser belongs to the caller.

The methods are generators. Each yields a text to parse, is sent a `ParseReply`, and returns pieces. The pieces
of an answer don't depend on how its text was split, except for their boundaries.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum

from services.inference.chat.chat_messages import ChatRefused, ParsedAnswer, ParsedCall, RenderedPrompt
from services.inference.chat.stop_sequences import beginning_at_end

#: llama.cpp's parser recurses, and deep brackets end its process. From here on the text is content.
MAX_NESTING = 64
#: A longer text must have grown by 1/256 before it is parsed again, so that parsing takes time in proportion to it.
EVERY_PIECE_CHARS = 1024
_GROWTH = 256
#: Enough of a channel's end to find it in the raw text.
_TAIL_CHARS = 64
_BRACKETS = re.compile(r"[\[\]{}]")

#: None if the parser was lost.
ParseReply = ParsedAnswer | ChatRefused | None
Parsing = Generator[str, ParseReply, "tuple[SeparatedPiece, ...]"]


class TextChannel(StrEnum):
    REASONING = "reasoning"
    CONTENT = "content"
    CALL = "call"


@dataclass(frozen=True, slots=True)
class SeparatedPiece:
    channel: TextChannel
    #: For a call, the next part of its arguments.
    text: str
    call: int = 0
    #: In a call's first piece only. The id is empty if the model wrote none.
    name: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class AnswerMarks:
    """What can end thoughts or content."""

    words: tuple[str, ...] = ()
    #: Some are patterns, so anything can.
    unknown: bool = False

    @classmethod
    def of(cls, rendered: RenderedPrompt) -> "AnswerMarks":
        triggers = [trigger.value for trigger in rendered.triggers if not trigger.kind.startswith("pattern")]
        words = (rendered.thinking_start, *rendered.thinking_ends, *triggers, *rendered.preserved, *rendered.stops)
        return cls(tuple(word for word in words if word), unknown=len(triggers) < len(rendered.triggers))


class _SentText:
    """What was sent of a channel: how much, and its end. White space at the end waits for what follows it."""

    def __init__(self) -> None:
        self._length = 0
        self.tail = ""

    def take(self, text: str) -> str:
        """Return what is new in the channel's whole text. What was sent can't be changed, so another text adds nothing."""
        if not text.startswith(self.tail, self._length - len(self.tail)):
            return ""
        new = text[self._length :]
        self.add(new)
        return new

    def add(self, new: str) -> None:
        self._length += len(new)
        self.tail = (self.tail + new)[-_TAIL_CHARS:]


class AnswerSeparator:
    """The state of one answer."""

    def __init__(self, marks: AnswerMarks) -> None:
        self._marks = marks
        self._firsts = frozenset(word[0] for word in marks.words)
        self._text = ""
        self._fresh: list[str] = []
        self._fresh_chars = 0
        #: How many characters of the text were parsed or passed on.
        self._known = 0
        #: Where what was sent of thoughts and content ends in the text.
        self._end = 0
        self._depth = 0
        self._sent = {TextChannel.REASONING: _SentText(), TextChannel.CONTENT: _SentText()}
        self._calls: list[_SentText] = []
        #: What is passed on without a parse belongs to it; None while a mark may have begun.
        self._open: TextChannel | None = None
        self._spaces = ""
        #: The rest is content: the parser refused the text, or was lost.
        self.failed = False

    @property
    def settled(self) -> int:
        """Return the number of characters whose pieces were all sent. Another worker can resume from there."""
        return self._known

    def feed(self, piece: str, *, last: bool = False) -> Parsing:
        if self.failed:
            self._known += len(piece)
            return _content(piece)
        limit = self._find_limit(piece)
        self._fresh.append(piece)
        self._fresh_chars += len(piece)
        if limit is not None:
            return (yield from self._settle(self._whole(), limit, last=last))
        if not last and self._open is not None and self._firsts.isdisjoint(piece):
            return self._pass_on(self._open, piece)
        length = len(self._text) + self._fresh_chars
        if not last and length - self._known < (1 if length <= EVERY_PIECE_CHARS else length // _GROWTH):
            return ()
        text = self._whole()
        return (yield from self._settle(text, len(text), last=last))

    def resume(self, delivered: str) -> Parsing:
        """Continue behind a text of which all pieces were sent. The returned pieces are those, and must not be sent again."""
        limit = self._find_limit(delivered)
        self._fresh.append(delivered)
        return (yield from self._settle(self._whole(), len(delivered) if limit is None else limit, last=False))

    def _whole(self) -> str:
        self._text += "".join(self._fresh)
        self._fresh.clear()
        self._fresh_chars = 0
        return self._text

    def _find_limit(self, piece: str) -> int | None:
        """Return the position in the whole text where it is too deep. Brackets in strings count: nobody knows yet what a string is."""
        for bracket in _BRACKETS.finditer(piece):
            self._depth = self._depth + 1 if bracket[0] in "[{" else max(0, self._depth - 1)
            if self._depth > MAX_NESTING:
                return len(self._text) + self._fresh_chars + bracket.start()
        return None

    def _pass_on(self, channel: TextChannel, piece: str) -> tuple[SeparatedPiece, ...]:
        text = self._spaces + piece
        body = text.rstrip()
        self._spaces = text[len(body) :]
        self._sent[channel].add(body)
        self._known += len(piece)
        self._end = self._known - len(self._spaces)
        return (SeparatedPiece(channel, body),) if body else ()

    def _settle(self, text: str, limit: int, *, last: bool) -> Parsing:
        """Parse the text up to the limit. What is behind it, or behind what the parser understands, is content."""
        reply = yield text[:limit]
        if isinstance(reply, ParsedAnswer) and limit == len(text):
            self._known = limit
            pieces = self._take(text, reply, last=last)
            return (*pieces, *self._finish(text, reply)) if last else self._open_channel(text, pieces)
        if isinstance(reply, ChatRefused):
            limit, reply = yield from self._longest(text, limit)
        pieces = self._take(text, reply, last=False) if isinstance(reply, ParsedAnswer) else ()
        self.failed, self._known, limit = True, len(text), limit if isinstance(reply, ParsedAnswer) else self._known
        behind = limit - len(beginning_at_end(text[:limit], self._marks.words)) if self._calls else self._end
        return (*pieces, *_content(text[behind:]))

    def _longest(self, text: str, limit: int) -> Generator[str, ParseReply, tuple[int, ParseReply]]:
        """Return how much of the text the parser understands, and what it says of it."""
        understood, best = 0, ParsedAnswer()
        while limit - understood > 1:
            middle = (understood + limit) // 2
            reply = yield text[:middle]
            if reply is None:
                return self._known, None
            understood, best, limit = (middle, reply, limit) if isinstance(reply, ParsedAnswer) else (understood, best, middle)
        return understood, best

    def _take(self, text: str, read: ParsedAnswer, *, last: bool) -> tuple[SeparatedPiece, ...]:
        self._end = read.end
        pieces = []
        for channel, whole in ((TextChannel.REASONING, read.reasoning), (TextChannel.CONTENT, read.content)):
            if new := self._sent[channel].take(whole.rstrip()):
                pieces.append(SeparatedPiece(channel, new))
        for index, call in enumerate(read.calls):
            if index < len(self._calls):
                if new := self._calls[index].take(call.arguments):
                    pieces.append(SeparatedPiece(TextChannel.CALL, new, index))
            elif call.arguments or last or index + 1 < len(read.calls):
                self._calls.append(_SentText())
                new = self._calls[index].take(call.arguments)
                pieces.append(SeparatedPiece(TextChannel.CALL, new, index, call.name, _early_id(text, call)))
        return tuple(pieces)

    def _open_channel(self, text: str, pieces: tuple[SeparatedPiece, ...]) -> tuple[SeparatedPiece, ...]:
        self._spaces = text[self._end :]
        is_open = not self._calls and not self._spaces.strip() and not self._marks.unknown
        self._open = self._last_channel() if is_open else None
        return pieces

    def _finish(self, text: str, read: ParsedAnswer) -> tuple[SeparatedPiece, ...]:
        """Return what only the end of the answer settles: spaces, and what looked like the beginning of a mark and was none."""
        left, channel = text[self._end :], self._last_channel()
        seemed_mark = left.strip() != "" and beginning_at_end(left.strip(), self._marks.words) == left.strip()
        if read.calls or not (seemed_mark or (not left.strip() and left and channel is TextChannel.CONTENT)):
            return ()
        return (SeparatedPiece(channel or TextChannel.CONTENT, left),)

    def _last_channel(self) -> TextChannel | None:
        return next((channel for channel in (TextChannel.CONTENT, TextChannel.REASONING) if self._sent[channel].tail), None)


def _content(text: str) -> tuple[SeparatedPiece, ...]:
    return (SeparatedPiece(TextChannel.CONTENT, text),) if text else ()


def _early_id(text: str, call: ParsedCall) -> str:
    """Return the id that the model wrote, if it wrote it before the arguments. A later one would be too late for the first piece."""
    start = call.arguments[:12]
    return "" if len(start) > 1 and start in text[: text.rfind(call.id)] else call.id
