"""The NATS protocol without a server: whole messages, messages split at every byte, and broken ones."""

import random

import pytest

from shared import errors
from shared.transports.nats import nats_protocol
from shared.transports.nats.nats_protocol import Info, NatsMessage, NatsParser, NatsPing, NatsPong, Operation, ServerError
from tests.cases import case

STREAM = (
    b'INFO {"server_id":"X","max_payload":2097152,"nonce":"abc","headers":true,"connect_urls":["10.0.0.1:4222"]}\r\n'
    b"PING\r\n"
    b"MSG aimesh.m.auth.A.client.B 1 5\r\nhello\r\n"
    b"MSG a.b 2 _INBOX.x 4\r\n\r\n\r\n\r\n"
    b"HMSG a.b 3 _INBOX.y 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n"
    b"MSG empty 4 0\r\n\r\n"
    b"+OK\r\n"
    b"-ERR 'Permissions Violation for Publish to \"x\"'\r\n"
    b"PONG\r\n"
)
OPERATIONS: list[Operation] = [
    Info(max_payload=2097152, server_id="X", nonce="abc", headers=True, connect_urls=("10.0.0.1:4222",)),
    NatsPing(),
    NatsMessage(1, b"aimesh.m.auth.A.client.B", b"", b"", b"hello"),
    NatsMessage(2, b"a.b", b"_INBOX.x", b"", b"\r\n\r\n"),
    NatsMessage(3, b"a.b", b"_INBOX.y", b"NATS/1.0\r\nA: b\r\n\r\n", b"hi"),
    NatsMessage(4, b"empty", b"", b"", b""),
    ServerError('Permissions Violation for Publish to "x"'),
    NatsPong(),
]


def test_a_stream_is_parsed_completely() -> None:
    assert NatsParser().feed(STREAM) == OPERATIONS


def test_a_stream_split_at_any_byte_is_parsed_the_same() -> None:
    for at in range(len(STREAM)):
        with case(at):
            parser = NatsParser()
            assert parser.feed(STREAM[:at]) + parser.feed(STREAM[at:]) == OPERATIONS


def test_a_stream_byte_by_byte_is_parsed_the_same() -> None:
    parser = NatsParser()
    assert [one for at in range(len(STREAM)) for one in parser.feed(STREAM[at : at + 1])] == OPERATIONS


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n", id="another protocol"),
        pytest.param(b"MSG a.b\r\n", id="no size"),
        pytest.param(b"MSG a.b 1 many\r\n", id="a size that is no number"),
        pytest.param(b"MSG a.b 1 -5\r\n", id="a negative size"),
        pytest.param(b"MSG a.b 1 999999999999\r\n", id="a size beyond measure"),
        pytest.param(b"HMSG a.b 1 9 5\r\nNATS/1.0\r\n", id="more headers than message"),
        pytest.param(b"INFO {}\r\n", id="an INFO that says nothing"),
        pytest.param(b"INFO [1\r\n", id="an INFO that is no JSON"),
        pytest.param(b"x" * (nats_protocol.MAX_LINE_BYTES + 1), id="a line without end"),
    ],
)
def test_invalid_server_messages_end_the_connection(data: bytes) -> None:
    with pytest.raises(errors.ProtocolViolation, match="NATS server"):
        NatsParser().feed(data)


def test_corrupted_streams_are_parsed_or_refused() -> None:
    rng = random.Random(1)
    for _ in range(20_000):
        data = bytearray(STREAM)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            NatsParser().feed(bytes(data))
        except errors.ProtocolViolation:
            pass


def test_what_a_client_sends() -> None:
    assert nats_protocol.publish("a.b", b"hi") == b"PUB a.b 2\r\nhi\r\n"
    assert nats_protocol.publish("a.b", b"hi", "_INBOX.1") == b"PUB a.b _INBOX.1 2\r\nhi\r\n"
    assert nats_protocol.publish("a", b"hi", "r", {"x": "1"}) == b"HPUB a r 18 20\r\nNATS/1.0\r\nx: 1\r\n\r\nhi\r\n"
    assert nats_protocol.subscribe(1, "a.>") == b"SUB a.> 1\r\n"
    assert nats_protocol.subscribe(1, "a.>", "q") == b"SUB a.> q 1\r\n"
    assert nats_protocol.unsubscribe(1) == b"UNSUB 1\r\n"


def test_a_line_break_in_a_header_adds_no_second_header() -> None:
    block = nats_protocol.encode_headers({"error": "one\r\nadmin: yes"})
    assert nats_protocol.decode_headers(block) == {"error": "one admin: yes"}
