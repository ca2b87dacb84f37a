"""Signatures of versions: good ones, altered ones, and what is none."""

import base64
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from shared import errors
from shared.models import trust_bundle
from shared.models.manifest import MAX_SIGNATURE_BYTES
from tests.shared.models.publishers import FILES, Publisher, named, version_of

VERSION = version_of()


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_a_signature_of_a_manifest_covers_its_version_only(curve: ec.EllipticCurve) -> None:
    publisher = Publisher(ec.generate_private_key(curve))
    signature = trust_bundle.read(publisher.sign(VERSION.digest))
    assert signature.is_by(publisher.key.public_key())
    assert signature.hint == trust_bundle.fingerprint(publisher.key.public_key())
    assert not signature.is_by(ec.generate_private_key(curve).public_key())
    assert signature.covers(VERSION)
    assert not signature.covers(version_of({"model.gguf": b"other"}))


@pytest.mark.parametrize(
    ("files", "covers"),
    [
        (FILES, True),
        ({**FILES, "README.md": b"more"}, False),
        ({"model.gguf": b"weights"}, False),
        ({"model.gguf": b"eyes", "mmproj.gguf": b"weights"}, False),
        ({f"blobs/sha256/{VERSION.digest[7:]}": b"not the manifest"}, False),
    ],
)
def test_a_signature_of_files_covers_a_version_with_exactly_these(files: dict[str, bytes], covers: bool) -> None:
    signature = trust_bundle.read(trust_bundle.sign(Publisher().key, "folder", named(files)))
    assert signature.covers(VERSION) is covers


def test_an_image_layout_with_the_manifest_covers_the_version() -> None:
    digest = VERSION.digest.removeprefix("sha256:")
    files = [*named({"index.json": b"{}", "oci-layout": b"{}"}), (f"blobs/sha256/{digest}", digest)]
    assert trust_bundle.read(trust_bundle.sign(Publisher().key, "layout", files)).covers(VERSION)


def altered(publisher: Publisher, **changes: object) -> bytes:
    """Return a bundle whose statement was changed and signed again."""
    bundle = json.loads(publisher.sign(VERSION.digest))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"])) | changes
    payload = json.dumps(statement).encode()
    sealed = trust_bundle._sealed(payload)
    signature = publisher.key.sign(sealed, ec.ECDSA(trust_bundle._HASHES[publisher.key.curve.name]))
    bundle["dsseEnvelope"] |= {
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(bundle).encode()


def test_what_a_publisher_has_signed_must_be_a_statement_about_files() -> None:
    publisher = Publisher()
    trust_bundle.read(altered(publisher))
    (path, digest) = f"blobs/sha256/{VERSION.digest[7:]}", VERSION.digest[7:]
    files = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    for changes in (
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"predicateType": "https://model_signing/Digests/v0.1"},
        {"subject": []},
        {"subject": [{"name": "a", "digest": {"sha256": "0" * 64}}]},
        {"predicate": {"serialization": files, "resources": [{"name": path, "digest": digest, "algorithm": "md5"}]}},
        {"predicate": {"serialization": files, "resources": [{"name": path, "digest": digest + digest, "algorithm": "sha256"}]}},
        {
            "predicate": {
                "serialization": {**files, "method": "shards"},
                "resources": [{"name": path, "digest": digest, "algorithm": "sha256"}],
            }
        },
        {"predicate": {"resources": []}},
    ):
        with pytest.raises(errors.BadRequest, match="not readable"):
            trust_bundle.read(altered(publisher, **changes))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 100,
        b"{}",
        b"[" * 60_000,
        b'{"mediaType":' + b"[" * 60_000,
        Publisher().sign(VERSION.digest)[:-1],
        Publisher().sign(VERSION.digest).replace(b"v0.3", b"v0.4"),
        Publisher().sign(VERSION.digest).replace(b"in-toto+json", b"in-toto+yaml"),
        Publisher().sign(VERSION.digest).replace(b'"publicKey":{"hint"', b'"certificate":{"rawBytes"'),
        Publisher().sign(VERSION.digest).replace(b'"payload":"', b'"payload":"A'),
        b" " * (MAX_SIGNATURE_BYTES + 1),
    ],
)
def test_what_is_no_signature(data: bytes) -> None:
    with pytest.raises(errors.BadRequest, match=r"the signature (is not readable|has more than 65536 bytes)"):
        trust_bundle.read(data)


def test_a_key_of_another_kind_is_refused() -> None:
    encoding, public, none = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo, serialization.NoEncryption()
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256K1())):
        with pytest.raises(errors.BadRequest, match="no key for P-256, P-384 or P-521"):
            trust_bundle.read_private_key(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, none), None)
        with pytest.raises(errors.BadRequest, match="no key for P-256, P-384 or P-521"):
            trust_bundle.read_public_key(key.public_key().public_bytes(encoding, public).decode())
    for text in ("", "garbage", Publisher().private.decode(), "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(errors.BadRequest, match="no public key in PEM"):
            trust_bundle.read_public_key(text)
    for pem in (b"", b"garbage", Publisher().public.encode()):
        with pytest.raises(errors.BadRequest, match="no private key in PEM"):
            trust_bundle.read_private_key(pem, None)


def test_a_private_key_may_have_a_password() -> None:
    publisher = Publisher()
    locked = publisher.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    with pytest.raises(TypeError):
        trust_bundle.read_private_key(locked, None)
    with pytest.raises(errors.BadRequest, match="password is another one"):
        trust_bundle.read_private_key(locked, b"wrong")
    assert trust_bundle.read_private_key(locked, b"secret").public_key() == publisher.key.public_key()
