"""Finds the images in a long JSON body and cuts them out, so that the parsed rest is small, and its memory is free sooner. Pure."""

import re
import secrets
from dataclasses import dataclass, field

#: Shorter strings stay where they are.
MIN_BYTES = 4096
#: How an image in base64 begins: as a data URL, or as a JPEG, PNG, GIF or WebP. PHP writes \/ for /.
_BEGINNINGS = (b'"data:image', b'"/9j/', b'"\\/9j\\/', b'"iVBORw0KGgo', b'"R0lGOD', b'"UklGR')
#: The fields that have images. Others are texts, which no API may change.
_IMAGE_FIELD = re.compile(rb'"(?:url|image_url|data)"\s*:\s*$')
_MAX_FIELD = 32
#: Places that are looked at. What is behind them stays where it is.
_MAX_PLACES = 1000


@dataclass(frozen=True, slots=True)
class CutBody:
    body: bytes
    #: The texts that were cut out, by what stands in their place.
    images: dict[str, bytes] = field(default_factory=dict)


def cut(body: bytes) -> CutBody:
    """Return the body with a name for each image."""
    name = f"image-{secrets.token_hex(16)}-"
    kept: list[bytes] = []
    images: dict[str, bytes] = {}
    at = 0
    for start in sorted(start for beginning in _BEGINNINGS for start in _places(body, beginning)):
        end = body.find(b'"', start + 1)
        is_image = end - start > MIN_BYTES and body[end - 1] != 0x5C  # an escaped quote
        # Quotes in a text are escaped, so this finds the name of a field.
        if is_image and _IMAGE_FIELD.search(body, max(0, start - _MAX_FIELD), start):
            place = f"{name}{len(images)}"
            images[place] = body[start + 1 : end]
            kept += (body[at : start + 1], place.encode())
            at = end
    kept.append(body[at:])
    return CutBody(b"".join(kept), images)


def _places(body: bytes, beginning: bytes) -> list[int]:
    places: list[int] = []
    at = body.find(beginning)
    while at >= 0 and len(places) < _MAX_PLACES:
        places.append(at)
        at = body.find(beginning, at + 1)
    return places
