"""Extraction of images from long bodies."""

import json
import time

import pytest

from services.gateway.images import image_strings

IMAGE = "data:image/png;base64," + "A" * 5000
MIB = 1024 * 1024


def restored(body: bytes) -> object:
    cut = image_strings.cut(body)
    text = cut.body.decode()
    for place, image in cut.images.items():
        text = text.replace(place, image.decode())
    return json.loads(text)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param({"url": IMAGE}, id="one"),
        pytest.param({"a": [{"url": IMAGE}, {"image_url": IMAGE}, "c"], "d": 'a quote " and \\ slashes \\\\'}, id="several"),
        pytest.param({"data": "/9j/" + "A" * 5000, "url": IMAGE}, id="plain base64"),
        pytest.param({"url": "x" * 10_000}, id="a long text that is no image"),
        pytest.param({"url": "data:image/short"}, id="a short URL"),
        pytest.param({"url": IMAGE + '"', "data": IMAGE + "\\"}, id="quotes and slashes in images"),
    ],
)
def test_the_rest_is_as_it_was(found: dict[str, object]) -> None:
    body = json.dumps(found).encode()
    assert restored(body) == found
    assert restored(body.replace(b"/", b"\\/")) == found, "as PHP writes it"


@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":"), (" ,\n", " :\t")])
def test_only_images_are_cut_out(separators: tuple[str, str]) -> None:
    found = {"data": "x" * 10_000, "url": IMAGE, "text": IMAGE, "arguments": json.dumps({"url": IMAGE})}
    body = json.dumps(found, separators=separators).encode()
    cut = image_strings.cut(body)
    assert list(cut.images.values()) == [IMAGE.encode()]
    assert json.loads(cut.body) == {**found, "url": next(iter(cut.images))}


def test_a_text_that_begins_like_an_image_stays() -> None:
    """A tool that read an image or a stream of events was cut out of a long conversation, which was then refused."""
    body = json.dumps({"content": IMAGE, "output": "data: " + "x" * 5000, "url": "data: " + "x" * 5000}).encode()
    assert image_strings.cut(body) == image_strings.CutBody(body)


def test_a_body_cannot_guess_the_names() -> None:
    first, second = (image_strings.cut(json.dumps({"url": IMAGE}).encode()) for _ in range(2))
    assert first.images.keys() != second.images.keys()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'"' * (17 * MIB), id="quotes"),
        pytest.param(b'["' + b'\\"' * (8 * MIB), id="a string of escaped quotes"),
        pytest.param(b'"url":"data:image",' * MIB, id="short images"),
        pytest.param(b'"url":"data:image' * MIB, id="images without an end"),
        pytest.param(b'"data:image' * MIB, id="beginnings"),
        pytest.param(b"[" * (17 * MIB), id="lists"),
    ],
)
def test_a_hostile_body_is_given_up_soon(body: bytes) -> None:
    began = time.process_time()
    cut = image_strings.cut(body)
    assert not cut.images
    assert cut.body == body
    assert time.process_time() - began < 3
