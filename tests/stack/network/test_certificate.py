import base64
import hashlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import BasicConstraints, SubjectAlternativeName

from shared import errors
from stack.network import certificate


@pytest.mark.parametrize(
    ("names", "listens_on", "host"),
    [
        pytest.param(["ai.example.com", "127.0.0.1", "localhost"], "127.0.0.1", "127.0.0.1", id="loopback first"),
        pytest.param(["ai.example.com", "localhost"], "127.0.0.1", "localhost", id="then localhost"),
        pytest.param(["*.example.com", "ai.example.com"], "127.0.0.1", "ai.example.com", id="then a whole name"),
        pytest.param(["*.example.com"], "127.0.0.1", None, id="nothing usable"),
        pytest.param([], "127.0.0.1", None, id="no names"),
        pytest.param(["127.0.0.1", "localhost", "192.168.1.20"], "192.168.1.20", "192.168.1.20", id="where they listen"),
        pytest.param(["127.0.0.1", "ai.example.com"], "192.168.1.20", "ai.example.com", id="not where they don't"),
        pytest.param(["127.0.0.1", "localhost"], "192.168.1.20", None, id="only where they don't"),
        pytest.param(["127.0.0.1", "127.0.0.2"], "127.0.0.2", "127.0.0.2", id="another address of loopback"),
    ],
)
def test_choose_host(names: list[str], listens_on: str, host: str | None) -> None:
    assert certificate.choose_host(names, listens_on) == host


def _ensure(folder: Path, address: str) -> x509.Certificate:
    found, _ = certificate.ensure_own(folder / "certificate.pem", folder / "key.pem", address)
    return x509.load_pem_x509_certificate(found.read_bytes())


def test_own_certificate_is_kept_and_made_anew_for_another_address(tmp_path: Path) -> None:
    first = _ensure(tmp_path, "192.168.1.20")
    pin = certificate.read(tmp_path / "certificate.pem", "192.168.1.20").pin
    assert _ensure(tmp_path, "192.168.1.20") == first
    moved = _ensure(tmp_path, "10.0.0.7")
    assert moved != first
    # Other machines pinned the key.
    assert certificate.read(tmp_path / "certificate.pem", "10.0.0.7") == certificate.TlsCertificate("10.0.0.7", True, pin)
    encoded = moved.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert base64.b64decode(pin) == hashlib.sha256(encoded).digest()


def test_own_certificate_is_of_no_authority_and_has_one_name(tmp_path: Path) -> None:
    made = _ensure(tmp_path, "192.168.1.20")
    constraints = made.extensions.get_extension_for_class(BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    assert [str(name.value) for name in made.extensions.get_extension_for_class(SubjectAlternativeName).value] == ["192.168.1.20"]
    assert made.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3600)
    # As its own CA file, with its key.
    ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600


def test_own_certificate_is_made_anew_if_it_is_damaged_or_of_another_key(tmp_path: Path) -> None:
    first = _ensure(tmp_path, "192.168.1.20")
    (tmp_path / "certificate.pem").write_text("x")
    second = _ensure(tmp_path, "192.168.1.20")
    assert second.public_key() == first.public_key()
    (tmp_path / "key.pem").unlink()
    assert _ensure(tmp_path, "192.168.1.20").public_key() != first.public_key()


@pytest.mark.parametrize("content", ["x", "", "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"])
def test_damaged_key_is_not_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "key.pem").write_text(content)
    with pytest.raises(errors.BadSettings, match=r"key\.pem is damaged"):
        _ensure(tmp_path, "192.168.1.20")
    assert (tmp_path / "key.pem").read_text() == content
