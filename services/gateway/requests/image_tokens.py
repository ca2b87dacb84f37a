"""Bounds the tokens of an image before its worker has counted them. Pure.

Workers reduce an image to LONG_SIDE pixels. Encoders have at most a token for each patch of 14 x 14 pixels (CLIP, SigLIP, Pixtral). Most
have one for four patches (Qwen, Gemma), or fixed tiles (Llama 3.2: 4 x 1,601 tokens). The bound is a token for each patch, and at least
those tiles. Requests reserve it. The worker's exact count is billed, and no more than the bound.
"""

import math

from services.gateway.requests import image_headers
from shared.api.generation import LONG_SIDE, LOW_LONG_SIDE, ImageDetail, ImagePart

_PATCH = 14
#: What encoders with a fixed number of tiles need.
_FIXED_TOKENS = 4 * 1601
#: Marks around an image and at the end of each row.
_MARKS = 16
#: What many models need for a small image.
_MIN_LIKELY_TOKENS = 256


def most_tokens(image: ImagePart) -> int:
    """Raises BadImage."""
    columns, rows = _patches(image)
    return max(_FIXED_TOKENS, (columns + 1) * rows) + _MARKS


def likely_tokens(image: ImagePart) -> int:
    """Raises BadImage."""
    columns, rows = _patches(image)
    return max(_MIN_LIKELY_TOKENS, columns * rows // 4) + _MARKS


def _patches(image: ImagePart) -> tuple[int, int]:
    header = image_headers.read(image.data)
    side = LOW_LONG_SIDE if image.detail is ImageDetail.LOW else LONG_SIDE
    scale = min(1.0, side / max(header.width, header.height))
    return math.ceil(header.width * scale / _PATCH), math.ceil(header.height * scale / _PATCH)
