"""Marks special tokens in callers' texts before a prompt is rendered, and cuts the rendered prompt at the marks.  Pure.

If a caller writes `<|im_start|>`, it must stay plain text, or else the caller could speak as the system. llama.cpp recognizes special
tokens by their spelling, so each spelling in a message is marked before rendering, and the rendered text is split inside each marked
spelling. llama.cpp then sees two parts of plain text. Everything else is tokenized in one piece, as in the model's training.
"""

import re
from collections.abc import Iterator
from itertools import islice, pairwise, takewhile

#: Characters per search for special tokens, which holds the GIL for about a millisecond.
_SEARCHED_AT_ONCE = 16 * 1024
#: Special tokens in a part; the time grows with their square.
_SPECIAL_AT_ONCE = 512

#: Noncharacters, which Unicode reserves for internal use; they are removed from callers' texts.
MARK = "\ufdd0"
#: Stands for an image.
IMAGE_MARK = "\ufdd1"


class SpecialTokens:
    """Marks the spellings of a model's special tokens in callers' texts, and splits a rendered prompt at the marks."""

    def __init__(self, spellings: tuple[str, ...]) -> None:
        # A single character can't be split; such tokens (control characters) mean nothing in a chat template.
        long = {spelling for spelling in spellings if len(spelling) > 1}
        self._spelled = re.compile(_lookahead(long))
        self._beginnings = {spelling[:end] for spelling in long for end in range(1, len(spelling))}
        self._longest = max(map(len, long), default=0)

    def mark(self, text: str) -> str:
        """Put a MARK after the first character of every special token in the text, and of every possible start of one at its end, to
        which a template may append other text."""
        text = text.replace(MARK, "").replace(IMAGE_MARK, "")
        places = {*self._whole(text), *self._begun(text.rstrip())}
        pieces, before = [], 0
        for place in sorted(places):
            pieces.append(text[before : place + 1])
            before = place + 1
        return MARK.join((*pieces, text[before:]))

    def cut(self, rendered: str) -> list[str]:
        """Split a rendered prompt into parts that are safe to tokenize with special tokens recognized, and quick."""
        return [piece for part in rendered.split(MARK) for piece in self._bounded(part) if piece]

    def _bounded(self, part: str) -> Iterator[str]:
        """Split a long text before some of its special tokens: of 80,000 in one text, llama.cpp takes 13 s."""
        places = islice(self._whole(part), _SPECIAL_AT_ONCE, None, _SPECIAL_AT_ONCE) if len(part) > _SEARCHED_AT_ONCE else ()
        for start, end in pairwise((0, *places, len(part))):
            yield part[start:end]

    def _whole(self, text: str) -> Iterator[int]:
        for start in range(0, len(text), _SEARCHED_AT_ONCE):
            end = start + _SEARCHED_AT_ONCE
            for found in self._spelled.finditer(text, start, end + self._longest):
                if found.start() >= end:
                    break
                yield found.start()

    def _begun(self, text: str) -> Iterator[int]:
        for start in range(max(0, len(text) - self._longest), len(text)):
            if text[start:] in self._beginnings:
                yield start


def _lookahead(spellings: set[str]) -> str:
    """Build a pattern for the first character of any spelling, with a lookahead because spellings may overlap."""
    firsts = {spelling[0] for spelling in spellings}
    tails = {first: [spelling[1:] for spelling in spellings if spelling[0] == first] for first in sorted(firsts)}
    return "|".join(f"{re.escape(first)}(?={_any_of(tails[first])})" for first in tails) or r"(?!)"


def _any_of(texts: list[str]) -> str:
    """Build a pattern for text that starts with one of these; it branches by character instead of trying each text in turn."""
    shared = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(min(texts), max(texts), strict=False)))
    tails = [text[len(shared) :] for text in texts]
    if "" in tails:
        return re.escape(shared)
    firsts = sorted({tail[0] for tail in tails})
    return f"{re.escape(shared)}(?:{'|'.join(_any_of([tail for tail in tails if tail[0] == first]) for first in firsts)})"
