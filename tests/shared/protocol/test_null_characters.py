"""U+0000 is found in what is sent, and nothing else is taken for it."""

import msgspec
import pytest

from shared.protocol import null_characters


class Sent(msgspec.Struct):
    text: str = ""
    count: int = 0
    names: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    data: bytes = b""


@pytest.mark.parametrize(
    ("text", "has_one"),
    [
        ("a", False),
        ("a\0b", True),
        ("\0", True),
        ("\\\0", True),
        (r"\u0000", False),
        (r"\\u0000", False),
        ("\\", False),
    ],
)
def test_a_text_with_the_character_is_found_and_one_about_it_is_not(text: str, has_one: bool) -> None:
    assert null_characters.are_in_json(msgspec.json.encode([text])) is has_one
    for sent in (Sent(text), Sent(names=("a", text)), Sent(labels={"a": text}), Sent(labels={text: "a"})):
        assert null_characters.are_in(sent, msgspec.msgpack.encode(sent)) is has_one


def test_a_number_and_bytes_are_no_text() -> None:
    sent = Sent(count=0, data=b"\0\0")
    assert not null_characters.are_in(sent, msgspec.msgpack.encode(sent))
