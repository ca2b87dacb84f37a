"""Every kind of login that a NATS server may require, and the error when it is refused."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared import errors
from shared.identity import login_tokens, node_keys
from shared.node.lifecycle import background
from shared.transports.nats.login import NatsFiles, NatsLogin
from shared.transports.nats.nats_client import NatsClient
from shared.transports.nats.servers import read_urls
from tests.shared.transports.nats.real_servers import Operator, configure, server_with
from tests.shared.transports.nats.test_tls import make_certificate
from tests.testnet import NatsServer, until

PASSWORD = "authorization { user: alice, password: 's/e#c:r@t' }"
TOKEN = "authorization { token: 's3cr3t' }"


def client_of(url: str, **files: Path) -> NatsClient:
    return NatsClient(url, node_keys.NodeKey(node_keys.new_seed()), name="test", files=NatsFiles(**files))


def url_of(server: NatsServer, credentials: str, scheme: str = "nats") -> str:
    return f"{scheme}://{credentials}@127.0.0.1:{server.port}"


async def talk(client: NatsClient) -> None:
    """Log in, and receive a message that the client itself publishes."""
    heard: list[bytes] = []
    await client.connect(deadline_seconds=30)
    client.subscribe("a.b", lambda message: heard.append(message.payload))
    client.publish("a.b", b"hello")
    await client.flush(deadline_seconds=30)
    assert heard == [b"hello"]
    await client.close()


async def refusal(client: NatsClient) -> errors.Unavailable:
    with pytest.raises(errors.Unavailable) as refused:
        await client.connect(deadline_seconds=0.1)
    await client.close()
    return refused.value


@asynccontextmanager
async def kept(client: NatsClient) -> AsyncIterator[None]:
    await client.connect(deadline_seconds=30)
    async with background() as tasks:
        tasks.create_task(client.run())
        yield
        await client.close()


async def test_a_user_and_password_in_the_address_log_in(tmp_path: Path) -> None:
    server = server_with(tmp_path, PASSWORD)
    server.start()
    try:
        await talk(client_of(url_of(server, "alice:s%2Fe%23c%3Ar%40t")))
        why = await refusal(client_of(url_of(server, "alice:wrong-canary")))
        assert "refused the user and password of NATS_URL" in why.message
        assert "canary" not in f"{why.message} {why.hint}"
    finally:
        server.kill()


async def test_a_token_in_the_address_logs_in(tmp_path: Path) -> None:
    server = server_with(tmp_path, TOKEN)
    server.start()
    try:
        await talk(client_of(url_of(server, "s3cr3t")))
        why = await refusal(client_of(url_of(server, "wrong-canary")))
        assert "refused the token of NATS_URL" in why.message
        assert "canary" not in f"{why.message} {why.hint}"
    finally:
        server.kill()


async def test_a_credentials_file_logs_in_until_it_expires(tmp_path: Path) -> None:
    operator = Operator()
    server = server_with(tmp_path, operator.configuration)
    server.start()
    try:
        await talk(client_of(server.url, creds=operator.credentials(tmp_path / "a.creds")))
        why = await refusal(client_of(server.url, creds=Operator().credentials(tmp_path / "other.creds")))
        assert "refused the credentials of NATS_CREDS_FILE" in why.message
        client = client_of(server.url, creds=operator.credentials(tmp_path / "short.creds", seconds=2))
        async with kept(client):
            await until(lambda: client.trouble is not None and "NATS_CREDS_FILE" in client.trouble.message, seconds=20)
    finally:
        server.kill()


async def test_a_client_certificate_is_sent_to_a_server_that_requires_one(tmp_path: Path) -> None:
    make_certificate(tmp_path, "127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    tls = f'tls {{\n cert_file: "{cert}"\n key_file: "{key}"\n ca_file: "{cert}"\n verify: true\n}}'
    server = server_with(tmp_path, tls)
    server.start()
    try:
        url = server.url.replace("nats", "tls")
        await talk(client_of(url, ca=cert, cert=cert, key=key))
        why = await refusal(client_of(url, ca=cert))
        assert "NATS_CERT_FILE" in why.hint
    finally:
        server.kill()


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ConnectionResetError("the NATS server closed the connection")])
def test_a_lost_alert_of_a_required_certificate_has_the_same_hint(error: OSError) -> None:
    for url, hint in (("tls://127.0.0.1:4222", "NATS_CERT_FILE"), ("nats://127.0.0.1:4222", "start it")):
        servers = tuple(read_urls(url))
        login = NatsLogin(node_keys.NodeKey(node_keys.new_seed()), NatsFiles(), servers, login_tokens.without)
        assert hint in login.explain(error, servers).hint


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nats://alice:can#ary@127.0.0.1:4222", "not an address"),
        ("nats://alice:12#canary@127.0.0.1:4222", "nothing may follow"),
        ("nats://:canary@127.0.0.1:4222", "a password needs a user"),
        ("nats://127.0.0.1:4222/canary", "nothing may follow"),
        ("canary.example.org", "not an address"),
    ],
)
def test_an_address_with_ignored_parts_is_refused(url: str, said: str) -> None:
    with pytest.raises(errors.BadSettings, match=said) as refused:
        client_of(url)
    assert "canary" not in str(refused.value)


def test_unused_files_are_refused(tmp_path: Path) -> None:
    creds = Operator().credentials(tmp_path / "a.creds")
    make_certificate(tmp_path, "127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    with pytest.raises(errors.BadSettings, match="NATS_URL has a password"):
        client_of("nats://a:b@127.0.0.1:4222", creds=creds)
    with pytest.raises(errors.BadSettings, match="NATS_CERT_FILE and NATS_KEY_FILE go together"):
        client_of("tls://127.0.0.1:4222", cert=cert)
    with pytest.raises(errors.BadSettings, match="requires TLS"):
        client_of("nats://127.0.0.1:4222", cert=cert, key=key)
    with pytest.raises(errors.BadSettings, match=r"NATS_CERT_FILE: .* cannot be used"):
        client_of("tls://127.0.0.1:4222", cert=cert, key=creds)
    key.chmod(0o600)
    with pytest.raises(errors.BadSettings, match=r"NATS_CREDS_FILE: .* does not contain"):
        client_of("nats://127.0.0.1:4222", creds=key)
    with pytest.raises(errors.BadSettings, match=r"NATS_CREDS_FILE: .* cannot be read"):
        client_of("nats://127.0.0.1:4222", creds=tmp_path / "missing.creds")
    creds.chmod(0o644)
    with pytest.raises(errors.BadSettings, match=r"NATS_CREDS_FILE: .* can be read by others"):
        client_of("nats://127.0.0.1:4222", creds=creds)


async def test_a_server_with_too_low_a_limit_is_refused_with_both_figures(tmp_path: Path) -> None:
    server = server_with(tmp_path, "max_payload: 1MB")
    server.start()
    client = NatsClient(server.url, node_keys.NodeKey(node_keys.new_seed()), name="test", least_payload_bytes=128 * 1024)
    try:
        async with kept(client):
            with pytest.raises(errors.TooLarge, match=r"1048577 bytes .* 1048576"):
                client.publish("a.b", bytes(1024 * 1024 + 1))
            client.publish("a.b", bytes(1024 * 1024))
            await client.flush(deadline_seconds=30)
            server.kill()
            configure(server, "max_payload: 4KB")
            server.start()
            await until(lambda: client.trouble is not None and "4096 bytes" in client.trouble.message, seconds=20)
            assert client.trouble is not None
            assert "max_payload" in client.trouble.hint
    finally:
        server.kill()
