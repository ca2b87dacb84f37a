"""Heads of requests that are refused, and what the parser makes of a target."""

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.node.http import request_heads

HOST = (b"host", b"here")
CHUNKED = (b"transfer-encoding", b"Chunked")


@pytest.mark.parametrize(
    ("method", "target", "version", "headers"),
    [
        ("GET", b"/", "1.1", [HOST]),
        ("GET", b"/", "1.0", []),
        ("GET", b"//a/%2e?b=/c", "1.1", [HOST]),
        ("POST", b"/", "1.1", [HOST, CHUNKED]),
        ("GET", b"/", "1.1", [HOST, (b"x", b"x" * (request_heads.HEAD_BYTES - 10))]),
    ],
)
def test_unambiguous_heads_are_accepted(method: str, target: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> None:
    assert request_heads.find_mistake(method, target, version, headers) is None


@pytest.mark.parametrize(
    ("method", "target", "version", "headers"),
    [
        ("GET", b"/", "0.9", []),
        ("GET", b"/", "2.0", [HOST]),
        ("GET", b"/", "1.1", []),
        ("GET", b"/", "1.1", [HOST, HOST]),
        ("GET", b"/", "1.0", [HOST, HOST]),
        ("GET", b"http://there/", "1.1", [HOST]),
        ("OPTIONS", b"*", "1.1", [HOST]),
        ("CONNECT", b"here:80", "1.1", [HOST]),
        ("CONNECT", b"/", "1.1", [HOST]),
        ("GET", b"/x#y", "1.1", [HOST]),
        ("POST", b"/", "1.1", [HOST, CHUNKED, CHUNKED]),
        ("POST", b"/", "1.1", [HOST, (b"transfer-encoding", b"gzip, chunked")]),
        ("POST", b"/", "1.1", [HOST, (b"transfer-encoding", b"identity")]),
        ("POST", b"/", "1.0", [CHUNKED]),
        ("GET", b"/", "1.1", [HOST, (b"x", b"x" * request_heads.HEAD_BYTES)]),
        ("GET", b"/" + b"x" * request_heads.HEAD_BYTES, "1.1", [HOST]),
        ("GET", b"/", "1.1", [HOST, *[(b"x" * 1000, b"")] * 33]),
    ],
)
def test_ambiguous_heads_are_refused(method: str, target: bytes, version: str, headers: list[tuple[bytes, bytes]]) -> None:
    assert request_heads.find_mistake(method, target, version, headers)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30))
def test_the_path_of_a_target_ends_at_its_question_mark(text: str) -> None:
    target = b"/" + text.encode()
    if request_heads.find_mistake("GET", target, "1.1", [HOST]) is None:
        found = httptools.parse_url(target)
        path, _, query = target.partition(b"?")
        assert (found.path, found.query or b"") == (path, query)


def test_an_upgrade_offer_is_removed_from_the_head() -> None:
    headers = [HOST, (b"upgrade", b"h2c"), (b"content-length", b"3")]
    assert (
        request_heads.without_upgrade("POST", b"/x?y", "1.1", headers) == b"POST /x?y HTTP/1.1\r\nhost: here\r\ncontent-length: 3\r\n\r\n"
    )
