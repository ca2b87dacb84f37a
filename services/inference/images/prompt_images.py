"""The images of a prompt: their pixels, and where they are among its tokens.  Pure."""

from dataclasses import dataclass

import msgspec


class DecodedImage(msgspec.Struct, frozen=True, tag=True):
    """Goes from the chat process to the worker, and from there to the engine."""

    width: int
    height: int
    #: Three bytes for each pixel, row by row.
    rgb: bytes


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Tokens that stand for an image, or for a part of one. They are kept or dropped together."""

    start: int
    end: int
    #: How many positions they take: with M-RoPE, fewer than tokens.
    positions: int
    #: They must be computed in one batch.
    is_whole: bool = False


def position_of(index: int, spans: tuple[ImageSpan, ...]) -> int:
    """Return llama.cpp's position of a token that isn't in an image, or begins one."""
    return index - sum(span.end - span.start - span.positions for span in spans if span.end <= index)
