"""Pebble, Let's Encrypt's ACME server for tests, with a name server that resolves every name to loopback."""

import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests import capabilities
from tests.stacks import until
from tests.testnet import free_port

#: Traefik renews a certificate that expires within 20 minutes.
VALID_SECONDS = 900


@dataclass(frozen=True, slots=True)
class AcmeServer:
    directory: str
    #: For Pebble's own HTTPS port.
    ca_file: Path
    management: str

    async def read_root(self) -> str:
        """Wait until the server answers, and return the root of the certificates that it issues."""

        async def read() -> str:
            async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=self.ca_file), trust_env=False) as http:
                return (await http.get(f"{self.management}/roots/0")).raise_for_status().text

        return await until(read, seconds=20, what="Pebble answers", ignoring=(httpx.HTTPError,))


@contextmanager
def acme_server(folder: Path, plain_port: int, tls_port: int) -> Iterator[AcmeServer]:
    """Run Pebble, which connects to these two ports to check who owns a name."""
    dns_port, management_port, port = free_port(), free_port(), free_port()
    certificate, key = folder / "pebble.pem", folder / "pebble.key"
    _write_certificate(certificate, key)
    config = folder / "pebble.json"
    settings = {
        "listenAddress": f"127.0.0.1:{port}",
        "managementListenAddress": f"127.0.0.1:{management_port}",
        "certificate": str(certificate),
        "privateKey": str(key),
        "httpPort": plain_port,
        "tlsPort": tls_port,
        "certificateValidityPeriod": VALID_SECONDS,
    }
    config.write_text(json.dumps({"pebble": settings}), encoding="utf-8")
    names = ["pebble-challtestsrv", "-dns01", f"127.0.0.1:{dns_port}", "-management", f"127.0.0.1:{free_port()}", "-defaultIPv6", ""]
    names += ["-http01", "", "-https01", "", "-tlsalpn01", ""]
    pebble = ["pebble", "-config", str(config), "-dnsserver", f"127.0.0.1:{dns_port}"]
    environment = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
    with running(names, folder / "names.log"), running(pebble, folder / "pebble.log", environment):
        yield AcmeServer(f"https://127.0.0.1:{port}/dir", certificate, f"https://127.0.0.1:{management_port}")


@contextmanager
def running(words: list[str], log_file: Path, variables: dict[str, str] | None = None) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a program of this machine until the end of the block."""
    path = capabilities.find_program(words[0])
    assert path is not None, words[0]
    with log_file.open("ab") as log:
        environment = {"PATH": os.environ["PATH"], "HOME": str(log_file.parent), **(variables or {})}
        process = subprocess.Popen([path, *words[1:]], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _write_certificate(certificate: Path, key: Path) -> None:
    """Write a self-signed certificate for loopback."""
    own = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pebble")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(name, name, own.public_key(), x509.random_serial_number(), now - timedelta(1), now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(own, hashes.SHA256())
    )
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key.write_bytes(own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
