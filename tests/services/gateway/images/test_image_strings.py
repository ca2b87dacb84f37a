"""Extraction of images from long bodies."""

import json
import time

import pytest

from services.gateway.images import image_strings

IMAGE = "data:image/png;base64," + "A" * 5000
MOST = 1024 * 1024


def restored(body: bytes) -> object:
    cut = image_strings.cut(body, MOST)
    text = cut.body.decode()
    for place, image in cut.images.items():
        text = text.replace(place, image.decode())
    return json.loads(text)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param({"a": IMAGE}, id="one"),
        pytest.param({"a": [IMAGE, {"b": IMAGE}, "c"], "d": 'a quote " and \\ slashes \\\\'}, id="several"),
        pytest.param({'a"b': IMAGE, "\\": IMAGE}, id="escaped quotes in names"),
        pytest.param({"a": "/9j/" + "A" * 5000}, id="plain base64"),
        pytest.param({"a": "x" * 10_000}, id="a long text that is no image"),
        pytest.param({"a": "data:short"}, id="a short URL"),
    ],
)
def test_the_rest_is_as_it_was(found: dict[str, object]) -> None:
    body = json.dumps(found).encode()
    assert restored(body) == found
    assert restored(body.replace(b"/", b"\\/")) == found, "as PHP writes it"


def test_only_images_are_cut_out() -> None:
    cut = image_strings.cut(json.dumps({"a": "x" * 10_000, "b": IMAGE}).encode(), MOST)
    assert list(cut.images.values()) == [IMAGE.encode()]
    assert len(cut.body) < 11_000


def test_a_body_cannot_guess_the_names() -> None:
    first, second = (image_strings.cut(json.dumps({"a": IMAGE}).encode(), MOST) for _ in range(2))
    assert first.images.keys() != second.images.keys()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'"' * (16 * MOST), id="quotes"),
        pytest.param(b'["' + b'\\"' * (8 * MOST), id="a string of escaped quotes"),
        pytest.param(b'["' + b"\\\\" * (8 * MOST), id="a string of backslashes"),
        pytest.param(b'"a",' * (4 * MOST), id="short strings"),
        pytest.param(b"[" * (16 * MOST), id="lists"),
    ],
)
def test_a_hostile_body_is_given_up_soon(body: bytes) -> None:
    began = time.process_time()
    cut = image_strings.cut(body, MOST)
    assert not cut.images
    assert len(cut.body) == len(body)
    assert time.process_time() - began < 3
