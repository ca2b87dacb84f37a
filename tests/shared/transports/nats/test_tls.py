"""The client with a nats-server that speaks TLS, with a certificate from no public CA."""

import asyncio
import datetime
import ipaddress
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared import addresses, errors
from shared.identity import node_keys
from shared.transports.nats.login import NatsFiles
from shared.transports.nats.nats_client import NatsClient
from shared.types import Role
from tests.testnet import NatsServer


def make_certificate(folder: Path, address: str, key: ec.EllipticCurvePrivateKey | None = None) -> ec.EllipticCurvePrivateKey:
    """Write a key and a self-signed certificate for a name or an IP address, and return the key."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nats")])
    now = datetime.datetime.now(datetime.UTC)
    shown = x509.DNSName(address) if addresses.parse(address) is None else x509.IPAddress(ipaddress.ip_address(address))
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([shown]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return key


def start(folder: Path, address: str) -> NatsServer:
    make_certificate(folder, address)
    server = NatsServer(folder)
    with (folder / "nats.conf").open("a") as file:
        file.write(f'tls {{\n  cert_file: "{folder / "cert.pem"}"\n  key_file: "{folder / "key.pem"}"\n}}\n')
    server.start()
    return server


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder), "127.0.0.1")
        yield server
        server.kill()


def client_of(server: NatsServer, ca_file: Path | None, scheme: str = "tls") -> NatsClient:
    key = node_keys.load(server.key("gateway", Role.GATEWAY))
    return NatsClient(server.url.replace("nats", scheme), key, name="test", files=NatsFiles(ca=ca_file))


@pytest.mark.parametrize("scheme", ["tls", "nats"])
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_private_ca_is_accepted(server: NatsServer, loop: object, scheme: str) -> None:
    async def talk() -> None:
        client = client_of(server, server.folder / "cert.pem", scheme)
        await client.connect(deadline_seconds=5)
        client.publish("aimesh.test.who", bytes(300_000))
        await client.flush(deadline_seconds=5)
        await client.close()

    with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type]  # two factories of one kind
        runner.run(talk())


async def test_a_certificate_of_an_unknown_ca_is_refused(server: NatsServer) -> None:
    with pytest.raises(errors.Unavailable, match="certificate") as refused:
        await client_of(server, None).connect(deadline_seconds=0.1)
    assert "NATS_CA_FILE" in refused.value.hint


async def test_a_certificate_for_another_host_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder), "192.0.2.1")
        try:
            with pytest.raises(errors.Unavailable, match="certificate"):
                await client_of(server, server.folder / "cert.pem").connect(deadline_seconds=0.1)
        finally:
            server.kill()


@pytest.mark.parametrize("text", [None, "no certificate"])
async def test_an_unusable_ca_file_is_named(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    with pytest.raises(errors.BadSettings, match=r"NATS_CA_FILE: .*ca\.pem"):
        NatsClient("tls://127.0.0.1:1", node_keys.NodeKey(node_keys.new_seed()), name="x", files=NatsFiles(ca=file))
