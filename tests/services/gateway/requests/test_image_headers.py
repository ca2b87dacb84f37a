"""Formats and sizes from headers, and hostile headers."""

import random
import time

import pytest

from services.gateway.requests import image_headers
from services.gateway.requests.image_headers import BadImage, ImageHeader
from tests.services.gateway.images.pictures import gif, jpeg, png, webp

ALL = [png(640, 480), jpeg(640, 480), gif(640, 480), webp(640, 480), webp(640, 480, kind=b"VP8X"), webp(640, 480, kind=b"VP8L")]


@pytest.mark.parametrize("data", ALL)
def test_the_bytes_say_format_and_size(data: bytes) -> None:
    header = image_headers.read(data)
    assert (header.width, header.height) == (640, 480)
    assert header.format in {"png", "jpeg", "gif", "webp"}


def test_a_jpeg_with_a_thumbnail_tables_and_fill_bytes_before_its_frame() -> None:
    plain = jpeg(9, 7)
    thumbnail = b"\xff\xe1\0\x12Exif\0\0\xff\xd8\xff\xd9aaaaaa"
    table = b"\xff\xc4\0\5\0\1\2"
    assert image_headers.read(plain[:2] + thumbnail + table + b"\xff\xff" + plain[2:]) == ImageHeader("jpeg", 9, 7)


def test_a_first_frame_that_is_larger_than_the_screen_counts() -> None:
    data = bytearray(gif(2, 2))
    data[6:10] = b"\1\0\1\0"
    assert image_headers.read(bytes(data)) == ImageHeader("gif", 2, 2)


def test_ten_thousand_frames_cost_nothing() -> None:
    assert image_headers.read(gif(5, 5, frames=10_000)) == ImageHeader("gif", 5, 5)


@pytest.mark.parametrize("data", ALL)
def test_a_truncated_image_is_refused_wherever_it_ends(data: bytes) -> None:
    for end in range(len(data) - 5 if data.startswith((b"RIFF", b"\xff")) else 40):
        with pytest.raises(BadImage, match=r"truncated|not a JPEG|broken|no pixels"):
            image_headers.read(data[:end])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(b"", "not a JPEG", id="nothing"),
        pytest.param(b"%PDF-1.7", "not a JPEG", id="a document"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG", id="an SVG"),
        pytest.param(b"RIFF\0\0\0\0WAVEfmt ", "not a JPEG", id="a sound"),
        pytest.param(png(0, 5), "no pixels", id="no width"),
        pytest.param(b"\xff\xd8\xff\xda" + bytes(100), "broken JPEG", id="a scan without a frame"),
        pytest.param(b"\xff\xd8" + b"\xff\xe0\0\2" * 5000, "broken JPEG", id="5,000 empty segments"),
        pytest.param(b"\xff\xd8" + b"\xff" * 5000, "broken JPEG", id="only fill bytes"),
        pytest.param(gif()[:19] + b"\x21\xfe\0" * 5000, "broken GIF", id="5,000 extensions"),
        pytest.param(gif()[:19] + b"\x21\xfe" + b"\1a" * 5000, "broken GIF", id="5,000 blocks of a byte"),
    ],
)
def test_other_files_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadImage, match=why):
        image_headers.read(data)


def test_a_thousand_mutated_images_are_read_or_refused_in_no_time() -> None:
    rng = random.Random(19)
    slowest = 0.0
    refused = 0
    for _ in range(1000):
        data = bytearray(rng.choice(ALL) + rng.randbytes(rng.choice([0, 100, 50_000])))
        for _ in range(rng.randrange(1, 12)):
            data[rng.randrange(min(len(data), 200))] = rng.randrange(256)
        began = time.process_time()
        try:
            header = image_headers.read(bytes(data[: rng.randrange(4, len(data) + 1)]))
            assert header.width > 0
            assert header.height > 0
        except BadImage:
            refused += 1
        slowest = max(slowest, time.process_time() - began)
    assert 100 < refused < 1000
    assert slowest < 0.1
