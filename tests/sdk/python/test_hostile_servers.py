"""Whatever a server sends, both clients raise one of their own errors, in time."""

import gzip
import json

import aimesh
import pytest

from tests.sdk.python.either_client import both, staged
from tests.sdk.python.scripted_server import ANSWER, Reply, Then, event, events, whole

OK = b"HTTP/1.1 200 OK\r\n"


@both
@pytest.mark.parametrize(
    ("reply", "kinds"),
    [
        pytest.param(Reply([b"x" * 1000], head=b"not HTTP at all\r\n\r\n"), aimesh.ConnectionFailed, id="not HTTP"),
        pytest.param(Reply([b"x-a: " + b"y" * 1000 + b"\r\n"], head=OK, then=Then.ENDLESS), aimesh.ConnectionFailed, id="endless headers"),
        pytest.param(Reply([b"y" * 65_536], head=OK + b"x-a: ", then=Then.ENDLESS), aimesh.ConnectionFailed, id="an endless header"),
        pytest.param(Reply([], head=b"HTTP/1.1 101 X\r\n\r\n", then=Then.BREAK), aimesh.AimeshError, id="another protocol"),
        pytest.param(Reply([b"zz\r\n"], head=OK + b"transfer-encoding: chunked\r\n\r\n"), aimesh.ConnectionFailed, id="bad chunks"),
        pytest.param(Reply([b"\xff\xfe\xfd"]), aimesh.ProtocolError, id="no UTF-8"),
        pytest.param(Reply([b"[" * 100_000]), aimesh.ProtocolError, id="deep nesting"),
        pytest.param(Reply([b"x" * 1_000_000], then=Then.ENDLESS), aimesh.ProtocolError, id="an endless answer"),
        pytest.param(Reply([gzip.compress(b"0" * 10_000_000)], headers={"content-encoding": "gzip"}), aimesh.ProtocolError, id="a bomb"),
        pytest.param(Reply([], status=302, headers={"location": "http://127.0.0.1:1/"}), aimesh.ProtocolError, id="a redirect"),
        pytest.param(Reply([b"x" * 65_536], status=500, then=Then.ENDLESS), aimesh.ProtocolError, id="an endless error"),
        pytest.param(Reply([b"<html>"], status=403), aimesh.NotAllowed, id="a page of a proxy"),
        pytest.param(Reply([json.dumps({**ANSWER, "response": 1}).encode()]), aimesh.ProtocolError, id="a text that is a number"),
    ],
)
async def test_hostile_answers_raise_our_errors(kind: str, reply: Reply, kinds: type[Exception]) -> None:
    async with staged(kind, reply) as stage:
        with pytest.raises(kinds) as failure:
            await stage.client.inference("hi", timeout=60)
        assert isinstance(failure.value, aimesh.AimeshError)
        assert not isinstance(failure.value, aimesh.DeadlineExceeded)


@both
@pytest.mark.parametrize(
    ("reply", "kinds"),
    [
        pytest.param(events(b"x" * 100_000, then=Then.ENDLESS), aimesh.ProtocolError, id="an endless line"),
        pytest.param(events(b"data: " + b"x" * 100_000 + b"\n", then=Then.ENDLESS), aimesh.ProtocolError, id="an endless event"),
        pytest.param(events(b"data: \xff\xfe\n\n"), aimesh.ProtocolError, id="no UTF-8"),
        pytest.param(events(event({"text": None, "finish_reason": 1})), aimesh.ProtocolError, id="wrong types"),
        pytest.param(events(event({"error": {"code": [], "message": {}}})), aimesh.Unavailable, id="an error of wrong types"),
        pytest.param(events(b"id: 1\r\x00\ndata: {}\n\n"), aimesh.ConnectionFailed, id="only what nobody knows"),
        pytest.param(whole(), aimesh.ProtocolError, id="no stream"),
    ],
)
async def test_hostile_streams_raise_our_errors(kind: str, reply: Reply, kinds: type[Exception]) -> None:
    async with staged(kind, reply) as stage:
        with pytest.raises(kinds) as failure:
            await stage.client.read("hi", timeout=60)
        assert not isinstance(failure.value, aimesh.DeadlineExceeded)
