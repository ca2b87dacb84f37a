"""Partial success responses: both encodings, valid or broken, and how long they are remembered."""

import json
import random

import pytest

from services.metrics.export import partial_success
from services.metrics.export.partial_success import REMEMBERED_SECONDS, Rejection, Rejections

JSON, PROTOBUF = "application/json", "application/x-protobuf"


def in_json(**fields: object) -> bytes:
    return json.dumps({"partialSuccess": fields}).encode()


def in_protobuf(count: bytes, why: bytes = b"") -> bytes:
    """Encode a response; ``count`` is a varint."""
    inner = (b"\x08" + count if count else b"") + (b"\x12" + bytes([len(why)]) + why if why else b"")
    return b"\x0a" + bytes([len(inner)]) + inner


@pytest.mark.parametrize(
    ("form", "body", "found"),
    [
        pytest.param(JSON, in_json(rejectedSpans="3", errorMessage="too old"), Rejection(3, "too old"), id="spans"),
        pytest.param(JSON, in_json(rejectedLogRecords="3", errorMessage="too old"), Rejection(3, "too old"), id="lines"),
        pytest.param(JSON, in_json(rejectedSpans=3), Rejection(3, ""), id="a number that is one"),
        pytest.param(JSON, in_json(rejectedSpans=None, errorMessage="mind the gap"), Rejection(0, "mind the gap"), id="a warning"),
        pytest.param(
            "Application/JSON; charset=utf-8", in_json(rejectedSpans=1, more={"a": [1]}), Rejection(1, ""), id="more than we know"
        ),
        pytest.param(
            JSON, in_json(rejectedSpans=1, errorMessage="a\r\nb\0 \u2028c" + "x" * 5000), Rejection(1, "a b c" + "x" * 195), id="long"
        ),
        pytest.param(PROTOBUF, in_protobuf(b"\x03", b"too old"), Rejection(3, "too old"), id="protobuf"),
        pytest.param(PROTOBUF, in_protobuf(b"\xac\x02"), Rejection(300, ""), id="a number of two bytes"),
        pytest.param(PROTOBUF, b"\x10\x01\x19" + b"x" * 8 + b"\x25" + b"x" * 4 + in_protobuf(b"\x05"), Rejection(5, ""), id="other fields"),
    ],
)
def test_rejected_count_and_reason_are_read(form: str, body: bytes, found: Rejection) -> None:
    assert partial_success.read(form, body) == found


@pytest.mark.parametrize(
    ("form", "body"),
    [
        *((JSON, body) for body in (b"", b"{}", b"null", b"[]", b"{", b"\xff")),
        pytest.param(JSON, b"[" * 60_000, id="deep"),
        pytest.param(JSON, b'{"a":' * 10_000, id="deep within what we do not know"),
        (JSON, b'{"partialSuccess": null}'),
        (JSON, b'{"partialSuccess": 7}'),
        (JSON, in_json()),
        (JSON, in_json(rejectedSpans="0", errorMessage="")),
        (JSON, in_json(rejectedSpans=-1, errorMessage="x")),
        (JSON, in_json(rejectedSpans="many", errorMessage="x")),
        (JSON, in_json(rejectedSpans=1.5)),
        (JSON, in_json(rejectedSpans=10**30)),
        (JSON, in_json(rejectedSpans=1, errorMessage=["x"])),
        (PROTOBUF, b""),
        (PROTOBUF, b"\x0a\x00"),
        (PROTOBUF, in_protobuf(b"\x03", b"too old")[:-1]),
        (PROTOBUF, in_protobuf(b"\x03", b"\xff")),
        (PROTOBUF, in_protobuf(b"\xff" * 9 + b"\x01")),
        (PROTOBUF, b"\x0a\xff\xff\xff\xff\x7f"),
        (PROTOBUF, b"\x0b"),
        (PROTOBUF, b"\xff" * 100),
        (PROTOBUF, in_json(rejectedSpans=3)),
        (JSON, in_protobuf(b"\x03")),
        ("", in_json(rejectedSpans=3)),
        ("text/html", b"<html>"),
    ],
)
def test_invalid_body_means_no_rejection(form: str, body: bytes) -> None:
    assert partial_success.read(form, body) is None


def test_arbitrary_bytes_do_not_break_the_parser() -> None:
    rng = random.Random(7)
    whole = in_protobuf(b"\xac\x02", b"too old")
    for _ in range(3000):
        spoiled = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            spoiled[rng.randrange(len(spoiled))] = rng.randrange(256)
        found = partial_success.read(PROTOBUF, bytes(spoiled))
        assert found is None or (0 <= found.count < 2**63 and len(found.why) <= 200)


def test_reason_is_logged_once_whatever_its_numbers() -> None:
    seen = Rejections("spans")
    assert seen.note(Rejection(2, "span 17 is too old"), 100)
    assert not seen.note(Rejection(3, "span 18 is too old"), 110)
    assert seen.note(Rejection(1, "too long"), 120)
    assert not seen.note(Rejection(1, "span 19 is too old"), 130)
    assert "rejected 7 spans, the last one because: span 19 is too old;" in seen.complaint(130)
    assert sum(seen.note(Rejection(1, "x" * number), 140) for number in range(100)) == 6, "who has so many reasons makes them up"


def test_rejection_ends_after_a_quiet_period() -> None:
    seen = Rejections("spans")
    assert not seen.end(0)
    seen.note(Rejection(2, ""), 100)
    assert not seen.end(101), "the next batch may have some again"
    last = 100 + REMEMBERED_SECONDS
    assert "2 spans without a reason" in seen.complaint(last)
    assert seen.complaint(last + 1) == ""
    assert seen.end(last + 1)
    assert not seen.end(last + 2), "said once"
    assert seen.note(Rejection(5, ""), last + 3)
    assert "5 spans" in seen.complaint(last + 3)


def test_warning_is_logged_without_a_complaint() -> None:
    seen = Rejections("log lines")
    assert seen.note(Rejection(0, "use gzip"), 100)
    assert not seen.note(Rejection(0, "use gzip"), 200)
    assert seen.complaint(200) == ""
    assert seen.note(Rejection(1, "use gzip"), 300), "now some are lost"
    seen.note(Rejection(0, "use gzip"), 400)
    assert seen.complaint(301 + REMEMBERED_SECONDS) == ""
    assert not seen.note(Rejection(0, "use gzip"), 401)
    assert seen.note(Rejection(0, "use gzip"), 1000 + REMEMBERED_SECONDS)
