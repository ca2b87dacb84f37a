"""A webhook never reaches an address that it must not reach, whatever its name says, and when."""

import asyncio
import random
import ssl
from pathlib import Path

import pytest

from features.webhooks.gateway import receiver_client
from features.webhooks.gateway.receiver_client import ReceiverClient
from features.webhooks.rules.receiver_rules import ReceiverRules
from shared import errors
from tests import tiers
from tests.features.webhooks.gateway.receiver import Names, client_of, receiving
from tests.shared.transports.nats.test_tls import make_certificate

PUBLIC = "93.184.215.14"
FORBIDDEN = [
    "127.0.0.1",
    "10.1.2.3",
    "192.168.1.1",
    "172.16.0.1",
    "100.64.0.1",
    "169.254.169.254",
    "168.63.129.16",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "ff0e::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:7f00:1::",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
]


@pytest.mark.parametrize("address", FORBIDDEN)
async def test_an_address_that_is_not_public_is_refused_and_never_connected(address: str) -> None:
    async with receiving() as receiver:
        # All tried addresses lead to the receiver, if they are tried at all.
        url = f"https://receiver.example:{receiver.port}/"
        for found in ([address], [PUBLIC, address]):
            client = ReceiverClient(ReceiverRules(), Names([found]))
            with pytest.raises(errors.BadRequest, match=r"which (is not public|never gets webhooks)"):
                await client.check(url)
            answer = await client.post(url, b"{}", {})
            assert answer.status is None
            assert "which" in answer.error
        assert receiver.connections == 0


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "localhost", "[::1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]"]
)
async def test_spellings_of_this_machine_are_refused(host: str) -> None:
    async with receiving() as receiver:
        url = f"https://{host}:{receiver.port}/"
        with pytest.raises(errors.BadRequest):
            await ReceiverClient(ReceiverRules()).check(url)
        assert (await ReceiverClient(ReceiverRules()).post(url, b"{}", {})).status is None
        assert receiver.connections == 0


async def test_a_name_that_leads_elsewhere_at_the_second_attempt_is_not_followed() -> None:
    async with receiving() as receiver:
        url = f"https://receiver.example:{receiver.port}/"
        names = Names([(PUBLIC,), ("127.0.0.1",)])
        client = ReceiverClient(ReceiverRules(), names)
        await client.check(url)
        answer = await client.post(url, b"{}", {})
        assert answer.error == "receiver.example has the address 127.0.0.1, which is not public"
        assert receiver.connections == 0
        # Each is asked once: what was checked is connected.
        assert len(names.asked) == 2


async def test_a_receiver_that_is_allowed_gets_the_request_at_the_checked_address() -> None:
    async with receiving() as receiver:
        client = client_of(receiver)
        await client.check(receiver.url)
        assert (await client.post(receiver.url, b'{"a": 1}', {"webhook-id": "evt_1"})).status == 204
        (got,) = receiver.delivered
    assert got.headers["line"] == "POST /hook?a=1 HTTP/1.1"
    assert got.headers["host"] == f"receiver.example:{receiver.port}"
    assert got.headers["webhook-id"] == "evt_1"
    assert got.body == b'{"a": 1}'


async def test_only_what_the_setting_names_may_be_private_or_plain() -> None:
    async with receiving() as receiver:
        other = ReceiverRules.parse([f"other.example:{receiver.port}", f"receiver.example:{receiver.port + 1}"])
        by_network = ReceiverClient(ReceiverRules.parse(["127.0.0.0/8"]), Names([("127.0.0.1",)]))
        with pytest.raises(errors.BadRequest):
            await ReceiverClient(other, Names([("127.0.0.1",)])).check(receiver.url)
        assert (await by_network.post(receiver.url, b"", {})).status == 204
        # A name within it that leads out of it by now gets nothing without TLS.
        outside = ReceiverClient(ReceiverRules.parse(["127.0.0.0/8"]), Names([(PUBLIC,)]))
        assert (await outside.post(receiver.url, b"", {})).error == "the URL must begin with https://"
        assert receiver.connections == 1


async def test_metadata_is_never_allowed() -> None:
    client = ReceiverClient(ReceiverRules.parse(["169.254.0.0/16"]), Names([("169.254.169.254",)]))
    with pytest.raises(errors.BadRequest, match="never gets webhooks"):
        await client.check("http://metadata.example/")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://receiver.example/", "begin with https"),
        ("https://receiver.example:25/", "port 25"),
        ("https://receiver.example:80/", "port 80"),
        ("https://receiver.example:0/", "port between 1 and 65535"),
        ("https://receiver.example:65558/", "port between 1 and 65535"),
        ("https://receiver.example:65536/", "port between 1 and 65535"),
        ("https://user:secret@receiver.example/", "user"),
        ("https://receiver.example/#part", "fragment"),
        ("ftp://receiver.example/", "not a URL"),
        ("https:///hook", "not a URL"),
        ("receiver.example", "not a URL"),
        ("https://receiver.example/\nHost: other", "not a URL"),
        ("https://[::1", "not a URL"),
    ],
)
async def test_other_urls_are_refused(url: str, why: str) -> None:
    with pytest.raises(errors.BadRequest, match=why) as raised:
        await ReceiverClient(ReceiverRules(), Names([(PUBLIC,)])).check(url)
    assert "secret" not in str(raised.value)


async def test_a_name_without_an_address_is_refused() -> None:
    with pytest.raises(errors.BadRequest, match="no address"):
        await ReceiverClient(ReceiverRules(), Names([()])).check("https://receiver.example/")
    with pytest.raises(errors.BadRequest, match="can't be resolved"):
        await ReceiverClient(ReceiverRules()).check("https://nothing.invalid/")


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    async with (
        receiving() as other,
        receiving(f"HTTP/1.1 307 Go\r\nlocation: http://receiver.example:{other.port}/\r\n\r\n".encode()) as receiver,
    ):
        rules = ReceiverRules.parse(["127.0.0.0/8"])
        answer = await ReceiverClient(rules, Names([("127.0.0.1",)])).post(receiver.url, b"", {})
    assert (answer.status, other.connections) == (307, 0)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as proxy, receiving() as receiver:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert (await client_of(receiver).post(receiver.url, b"", {})).status == 204
        assert (proxy.connections, receiver.connections) == (0, 1)


async def test_a_little_of_the_answer_is_read_and_each_request_has_its_own_connection() -> None:
    endless = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\nretry-after: 7\r\n\r\n" + b"x" * 4096
    async with receiving(endless) as receiver:
        client = client_of(receiver)
        for _ in range(2):
            answer = await client.post(receiver.url, b"", {})
            assert (answer.status, answer.retry_after) == (200, "7")
        assert receiver.connections == 2


async def test_a_slow_receiver_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_client, "TOTAL_SECONDS", 0.05)
    async with receiving() as receiver:
        receiver.open.clear()
        assert (await client_of(receiver).post(receiver.url, b"", {})).error == "no answer in time"
        receiver.open.set()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "its answer is no HTTP"),
        (b"SSH-2.0-OpenSSH\r\n", "its answer is no HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx", "its answer is no HTTP"),
    ],
)
async def test_what_is_no_http_is_a_failure(answer: bytes, why: str) -> None:
    async with receiving(answer) as receiver:
        assert (await client_of(receiver).post(receiver.url, b"", {})).error == why


async def test_nobody_listens() -> None:
    async with receiving() as receiver:
        pass
    answer = await client_of(receiver).post(receiver.url, b"", {})
    assert answer.status is None
    assert answer.error.startswith("no connection")


async def test_tls_has_the_name_of_the_url(tmp_path: Path) -> None:
    make_certificate(tmp_path, "localhost")
    served, trusted = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context(cafile=tmp_path / "cert.pem")
    served.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with receiving(tls=served) as receiver:
        client = ReceiverClient(ReceiverRules.parse(["127.0.0.0/8"]), Names([("127.0.0.1",)]), trusted)
        assert (await client.post(f"https://localhost:{receiver.port}/", b"", {})).status == 204
        answer = await client.post(f"https://other.example:{receiver.port}/", b"", {})
    assert answer.status is None
    assert "certificate" in answer.error


@pytest.mark.parametrize("greeting", [b"", b"220 mail.example ESMTP\r\n", b"\x16\x03\x01\x00\x02\x01\x00", bytes(4096)])
async def test_a_server_that_speaks_no_tls_is_a_failure(greeting: bytes) -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        client = ReceiverClient(ReceiverRules.parse(["127.0.0.0/8"]), Names([("127.0.0.1",)]))
        answer = await client.post(f"https://receiver.example:{server.sockets[0].getsockname()[1]}/", b"", {})
    assert answer.status is None
    assert answer.error


#: Put together at random.
_PIECES = (
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 101 Switch\r\nupgrade: x\r\nconnection: upgrade\r\n", b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 999 \r\n", b"content-length: 5\r\n", b"content-length: -5\r\n", b"transfer-encoding: chunked\r\n",
    b"transfer-encoding: gzip\r\n", b"retry-after: \xff\xfe\r\n", b"\r\n", b"5\r\nhello\r\n", b"ffffffffffffffff\r\n", b"\x00\xff",
    b": x\r\n",    b"x" * 200_000, b"set-cookie: a\r\n" * 3000,
)  # fmt: skip


async def test_whatever_a_server_answers_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_client, "TOTAL_SECONDS", 0.3)
    rng = random.Random(tiers.seed("WEBHOOK_SEED"))
    async with receiving() as receiver:
        client = client_of(receiver)
        for _ in range(tiers.volume(1000)):
            receiver.answers = [b"".join(rng.choices(_PIECES, k=rng.randrange(7)))]
            answer = await client.post(receiver.url, b"{}", {})
            assert (answer.status is None) is bool(answer.error)
