"""Runs the generators of `answer_text` with a parser, and joins pieces for comparison."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from services.inference.chat.answer_text import AnswerMarks, AnswerSeparator, ParseReply, Parsing, SeparatedPiece

Parse = Callable[[str], ParseReply]


def run(parsing: Parsing, parse: Parse) -> tuple[SeparatedPiece, ...]:
    try:
        text = next(parsing)
        while True:
            text = parsing.send(parse(text))
    except StopIteration as end:
        return tuple(end.value)


def read(pieces: Iterable[str], marks: AnswerMarks, parse: Parse, *, delivered: str = "") -> list[SeparatedPiece]:
    """Feed an answer in these pieces, after text that was already delivered."""
    answer = AnswerSeparator(marks)
    sent: list[SeparatedPiece] = []
    if delivered:
        run(answer.resume(delivered), parse)
    for piece in pieces:
        sent += run(answer.feed(piece), parse)
    sent += run(answer.feed("", last=True), parse)
    return joined(sent)


def joined(pieces: Iterable[SeparatedPiece]) -> list[SeparatedPiece]:
    """Join neighboring pieces of the same channel and call."""
    whole: list[SeparatedPiece] = []
    for piece in pieces:
        if whole and (whole[-1].channel, whole[-1].call) == (piece.channel, piece.call) and not piece.name:
            whole[-1] = replace(whole[-1], text=whole[-1].text + piece.text)
        else:
            whole.append(piece)
    return whole
