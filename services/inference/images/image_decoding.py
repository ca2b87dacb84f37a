"""Decodes an image to pixels with Pillow: the first frame, upright, on white, no larger than models look at.

Only the chat process and tests import this module: a file may make a decoder crash, loop or take all memory.
"""

import io
import struct
import zlib

from PIL import ExifTags, Image, UnidentifiedImageError

from services.inference.images.prompt_images import DecodedImage

#: Checked in the file's header, before a pixel is decoded.
MAX_PIXELS = 40_000_000
MAX_SIDE = 16_384
#: The longer side divided by the shorter one. Some encoders abort above 200.
MAX_RATIO = 100
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_REASON_CHARACTERS = 200
#: A decoder first shrinks to so many times the wanted size in a faster way.
_GAP = 2.0
#: What Pillow's readers raise for damaged files.
_FAULTS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, AssertionError, struct.error,
    zlib.error, Image.DecompressionBombError,
)  # fmt: skip
#: By the number in the file's EXIF data (EXIF 2.32, 4.6.4): how to turn the image.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: The sizes are checked here.
Image.MAX_IMAGE_PIXELS = None


class NotDecodable(Exception):
    """The text completes "the image …"."""


def decode(data: bytes, long_side: int) -> DecodedImage:
    """Shrink the image to ``long_side`` if it is larger. Raises NotDecodable."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size)
            turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            flat = _on_white(image, long_side)
        upright = flat if turn is None else flat.transpose(turn)
        return DecodedImage(*upright.size, upright.tobytes())
    except NotDecodable:
        raise
    except UnidentifiedImageError:
        raise NotDecodable("is not a JPEG, PNG, WebP or GIF") from None
    except MemoryError:
        raise NotDecodable("needs too much memory") from None
    except _FAULTS as error:
        raise NotDecodable(f"is damaged: {error}"[:_REASON_CHARACTERS]) from None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise NotDecodable(f"has {width} x {height} pixels; at most {MAX_PIXELS} and {MAX_SIDE} on a side are allowed")
    if not min(width, height) or max(width, height) > MAX_RATIO * min(width, height):
        raise NotDecodable(f"has {width} x {height} pixels; a side may be at most {MAX_RATIO} times as long as the other")


def _on_white(image: Image.Image, long_side: int) -> Image.Image:
    size = (long_side, long_side)
    if image.mode in ("RGB", "L", "CMYK", "YCbCr") and not image.has_transparency_data:
        # A JPEG is decoded in a smaller size.
        image.thumbnail(size, reducing_gap=_GAP)
        return image.convert("RGB")
    if image.mode.startswith("I"):
        # 16 bits of gray.
        gray = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
        gray.thumbnail(size, reducing_gap=_GAP)
        return gray.convert("RGB")
    colors = image.convert("RGBA")
    colors.thumbnail(size, reducing_gap=_GAP)
    white = Image.new("RGB", colors.size, "white")
    white.paste(colors, mask=colors.getchannel("A"))
    return white
