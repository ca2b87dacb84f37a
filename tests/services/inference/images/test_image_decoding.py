"""The decoder of the chat process: formats, how an image is changed, and what is refused."""

import random
import struct
import zlib
from collections.abc import Callable
from itertools import product

import pytest
from PIL import Image, ImageDraw

from services.inference.images import image_decoding
from services.inference.images.image_decoding import MAX_PIXELS, NotDecodable
from services.inference.images.prompt_images import DecodedImage
from tests import tiers
from tests.services.inference.images.vision_models import encoded, picture

SIDE = 64
RED, WHITE = (255, 0, 0), (255, 255, 255)
MUTATED = 1000


def color(pixels: DecodedImage, x: int, y: int) -> tuple[int, ...]:
    at = 3 * (y * pixels.width + x)
    return tuple(pixels.rgb[at : at + 3])


def is_near(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) < 12


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_formats_give_the_same_pixels(kind: str) -> None:
    image = picture(1, 48, 40)
    pixels = image_decoding.decode(encoded(image, kind), SIDE)
    assert (pixels.width, pixels.height, len(pixels.rgb)) == (48, 40, 48 * 40 * 3)
    for x, y in product((10, 38), (8, 32)):
        assert is_near(color(pixels, x, y), image.getpixel((x, y)))  # type: ignore[arg-type]


def test_only_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (8, 8), one) for one in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP"):
        pixels = image_decoding.decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), SIDE)
        assert is_near(color(pixels, 4, 4), RED)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int) -> None:
    upright = Image.new("RGB", (40, 20), "white")
    ImageDraw.Draw(upright).rectangle((0, 0, 9, 9), "red")
    # Store the image turned the other way, so that its orientation tag turns it upright.
    turn = image_decoding._TURNS.get(orientation)
    opposite = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}
    stored = upright if turn is None else upright.transpose(opposite.get(turn, turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = image_decoding.decode(encoded(stored, "PNG", exif=exif), SIDE)
    assert (pixels.width, pixels.height) == (40, 20)
    assert (color(pixels, 3, 3), color(pixels, 30, 15)) == (RED, WHITE)


def test_what_is_transparent_becomes_white() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    indexed = Image.new("P", (8, 8), 0)
    indexed.putpalette([0, 0, 0, 255, 0, 0])
    indexed.putpixel((0, 0), 1)
    for data in (encoded(clear), encoded(clear, "WEBP", lossless=True), encoded(indexed, "PNG", transparency=0)):
        pixels = image_decoding.decode(data, SIDE)
        assert (color(pixels, 0, 0), color(pixels, 7, 7)) == (RED, WHITE)


def test_gray_of_16_bits_keeps_its_brightness() -> None:
    assert color(image_decoding.decode(encoded(Image.new("I;16", (8, 8), 40_000)), SIDE), 4, 4) == (156, 156, 156)


@pytest.mark.parametrize(
    ("width", "height", "expected"), [(200, 100, (64, 32)), (100, 200, (32, 64)), (64, 10, (64, 10)), (2000, 30, (64, 1))]
)
def test_large_images_are_shrunk(width: int, height: int, expected: tuple[int, int]) -> None:
    for kind in ("PNG", "JPEG"):
        pixels = image_decoding.decode(encoded(Image.new("RGB", (width, height), "red"), kind), SIDE)
        assert (pixels.width, pixels.height) == expected


def png_of(width: int, height: int) -> bytes:
    """Return a PNG whose header has this size, with hardly any pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "is not a JPEG, PNG, WebP or GIF"),
    "text": (lambda: b"hello", "is not a JPEG, PNG, WebP or GIF"),
    "another format": (lambda: encoded(picture(1), "BMP"), "is not a JPEG, PNG, WebP or GIF"),
    "truncated PNG": (lambda: encoded(picture(1, 300, 300))[:-200], "is damaged"),
    "truncated JPEG": (lambda: encoded(picture(1, 300, 300), "JPEG")[:-200], "is damaged"),
    "truncated WebP": (lambda: encoded(picture(1, 300, 300), "WEBP")[:-60], "is (damaged|not a JPEG)"),
    "no pixels behind the header": (lambda: png_of(100, 100), "is damaged"),
    "huge header": (lambda: png_of(60_000, 60_000), f"60000 x 60000 pixels; at most {MAX_PIXELS} and 16384 on a side"),
    "long side": (lambda: png_of(17_000, 200), "17000 x 200 pixels; at most"),
    "strip": (lambda: png_of(2_000, 10), "2000 x 10 pixels; a side may be at most 100 times as long"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_with_the_reason(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(NotDecodable, match=reason):
        image_decoding.decode(data(), SIDE)


def test_mutated_files_are_decoded_or_refused() -> None:
    """Anything but NotDecodable would be a crash."""
    rng = random.Random(19)
    files = [encoded(picture(1, 60, 50), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")]
    files.append(encoded(picture(2), "GIF", save_all=True, append_images=[picture(3), picture(4)]))
    refused = 0
    for number in range(MUTATED if tiers.is_nightly() else MUTATED // 10):
        data = bytearray(files[number % len(files)])
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        del data[rng.choice((len(data), rng.randrange(len(data)))) :]
        try:
            pixels = image_decoding.decode(bytes(data), SIDE)
        except NotDecodable:
            refused += 1
        else:
            assert len(pixels.rgb) == 3 * pixels.width * pixels.height
    assert refused > 20
