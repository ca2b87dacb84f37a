"""RESP2: values are read correctly wherever the data is split, and invalid data ends the connection."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import errors
from shared.stores import resp
from shared.stores.resp import Reply, ReplyError, RespParser

REPLIES: list[tuple[bytes, Reply]] = [
    (b"+PONG\r\n", b"PONG"),
    (b"+\r\n", b""),
    (b":0\r\n", 0),
    (b":-12\r\n", -12),
    (b":9223372036854775807\r\n", 2**63 - 1),
    (b"$0\r\n\r\n", b""),
    (b"$5\r\na\r\nb:\r\n", b"a\r\nb:"),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"*0\r\n", []),
    (b"*3\r\n:1\r\n:2\r\n:-3\r\n", [1, 2, -3]),
    (b"*1\r\n:1\r\n", [1]),
    (b"*3\r\n:1\r\n:2\r\n$1\r\nx\r\n", [1, 2, b"x"]),
    (b"*2\r\n$1\r\nx\r\n:5\r\n", [b"x", 5]),
    (b"*3\r\n*2\r\n:1\r\n:2\r\n*0\r\n*1\r\n*1\r\n$-1\r\n", [[1, 2], [], [[None]]]),
]
WHOLE = b"".join(wire for wire, _ in REPLIES)
MEANT = [meant for _, meant in REPLIES]


def fed(*parts: bytes) -> list[Reply]:
    parser = RespParser()
    return [reply for part in parts for reply in parser.feed(part)]


@pytest.mark.parametrize(("wire", "meant"), REPLIES)
def test_what_is_read_is_what_was_meant(wire: bytes, meant: Reply) -> None:
    assert fed(wire) == [meant]


def test_it_may_be_split_at_every_byte() -> None:
    assert fed(*(WHOLE[at : at + 1] for at in range(len(WHOLE)))) == MEANT
    for at in range(len(WHOLE)):
        assert fed(WHOLE[:at], WHOLE[at:]) == MEANT


@given(st.lists(st.integers(0, len(WHOLE)), max_size=9))
def test_it_may_come_in_any_parts(cuts: list[int]) -> None:
    at = [0, *sorted(cuts), len(WHOLE)]
    assert fed(*(WHOLE[begin:end] for begin, end in pairwise(at))) == MEANT


def test_numbers_behind_a_list_are_not_of_it() -> None:
    assert fed(b"*2\r\n:1\r\n:2\r\n:3\r\n*1\r\n:4\r\n") == [[1, 2], 3, [4]]


def test_an_error_has_a_first_word() -> None:
    wrong, (one, inside) = fed(b"-WRONGTYPE not a number\r\n*2\r\n:1\r\n-ERR x\r\n")  # type: ignore[misc]
    assert isinstance(wrong, ReplyError)
    assert (str(wrong), wrong.word) == ("WRONGTYPE not a number", "WRONGTYPE")
    assert isinstance(inside, ReplyError)
    assert (one, inside.word) == (1, "ERR")


def test_a_large_value_is_put_together_once() -> None:
    value = bytes(range(256)) * 4096
    wire = b"$%d\r\n%b\r\n" % (len(value), value)
    parser = RespParser()
    for at in range(0, len(wire) - 1, 100):
        assert parser.feed(wire[at : min(at + 100, len(wire) - 1)]) == []
        assert len(parser._parts) == at // 100 + 1
    assert parser.feed(wire[-1:] + b":7\r\n") == [value, 7]


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 400 Bad Request\r\n", b"\r\n", b"_\r\n", b"%1\r\n", b":\r\n", b":x\r\n", b":1_0\r\n", b": 1\r\n", b":--1\r\n",
        b":" + b"1" * 21 + b"\r\n", b"$x\r\n", b"$-2\r\n", b"$+1\r\n", b"$1 \r\n", b"*-2\r\n", b"*\r\n", b"$3\r\nabcd\r\n", b"$0\r\nab",
        b"*1\r\n" * 9, b"$16777217\r\n", b"*6000000\r\n", b"$99999999999\r\n", b"-" + b"x" * 65536,
        b"*2\r\n:1\r\n:x\r\n",
    ],
)  # fmt: skip
def test_what_is_no_resp_is_a_violation(wire: bytes) -> None:
    with pytest.raises(errors.ProtocolViolation):
        fed(wire)


@given(st.binary(max_size=200))
def test_nothing_else_comes_of_garbage(noise: bytes) -> None:
    try:
        whole = fed(noise)
    except errors.ProtocolViolation:
        return
    assert len(whole) <= len(noise)


@given(st.lists(st.one_of(st.binary(), st.text(), st.integers(), st.floats(allow_nan=False)), min_size=1, max_size=20))
def test_a_command_is_a_list_of_texts(words: list[resp.Word]) -> None:
    assert fed(resp.command(words)) == [[word if isinstance(word, bytes) else str(word).encode() for word in words]]
