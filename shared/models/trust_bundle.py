"""Signatures of versions by a publisher's key, in the format of OpenSSF's model-signing: a DSSE envelope with an in-toto statement that
names files with their SHA-256. Pure.

One signs a version if it names the version's manifest as `blobs/sha256/…`, as in an OCI image layout, or exactly the version's files.
Everything here may come from strangers. The package `model-signing` needs 38 others for this: docs/decisions/0031-signed-models.md.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from msgspec import Meta

from shared import errors
from shared.models import image_layout
from shared.models.manifest import MAX_SIGNATURE_BYTES, Version

_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_HASHES: dict[str, hashes.HashAlgorithm] = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
Decoded = TypeVar("Decoded")


class _Part(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Of the bundle."""


class _Signature(_Part, frozen=True):
    sig: str
    keyid: str | None = None


class _Envelope(_Part, frozen=True):
    payload: str
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: Annotated[tuple[_Signature, ...], Meta(min_length=1)]


class _PublicKey(_Part, frozen=True):
    hint: str | None = None


class _Material(_Part, frozen=True):
    public_key: _PublicKey
    tlog_entries: Annotated[tuple[str, ...], Meta(max_length=0)] = ()


class _Bundle(_Part, frozen=True):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _Material
    dsse_envelope: _Envelope


class _Resource(msgspec.Struct, frozen=True):
    name: str
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    algorithm: Literal["sha256"]


class _Serialization(msgspec.Struct, frozen=True):
    #: Not `shards`, which are parts of files.
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: msgspec.Raw


class _Predicate(msgspec.Struct, frozen=True):
    serialization: _Serialization
    resources: tuple[_Resource, ...]


class _Digest(msgspec.Struct, frozen=True):
    sha256: str


class _Subject(msgspec.Struct, frozen=True):
    name: msgspec.Raw
    digest: _Digest


class _Statement(msgspec.Struct, frozen=True, rename={"kind": "_type", "predicate_type": "predicateType"}):
    kind: Literal["https://in-toto.io/Statement/v1"]
    subject: Annotated[tuple[_Subject, ...], Meta(min_length=1, max_length=1)]
    predicate_type: Literal["https://model_signing/signature/v1.0"]
    predicate: _Predicate


@dataclass(frozen=True, slots=True)
class Signature:
    """A bundle, before anybody has checked by whom it is."""

    #: The fingerprint of a key, or nothing. Only a claim.
    hint: str
    payload: bytes
    signature: bytes
    #: Paths, and SHA-256 in hex.
    files: frozenset[tuple[str, str]]

    def covers(self, version: Version) -> bool:
        own = {(file.path, file.digest.removeprefix("sha256:")) for file in version.files}
        return _manifest_file(version.digest) in self.files or own == self.files

    def is_by(self, key: EllipticCurvePublicKey) -> bool:
        try:
            key.verify(self.signature, _sealed(self.payload), ECDSA(_HASHES[key.curve.name]))
        except InvalidSignature:
            return False
        return self.hint in {"", fingerprint(key)}


def read(data: bytes) -> Signature:
    """Raises BadRequest for what is no bundle, or is signed by other means than a key."""
    if len(data) > MAX_SIGNATURE_BYTES:
        raise errors.BadRequest(f"the signature has more than {MAX_SIGNATURE_BYTES} bytes", hint="sign the version's manifest only")
    bundle = _decode(data, _Bundle)
    envelope, hint = bundle.dsse_envelope, bundle.verification_material.public_key.hint
    try:
        payload, signature = base64.b64decode(envelope.payload), base64.b64decode(envelope.signatures[0].sig)
    except ValueError as error:
        raise errors.BadRequest(f"the signature is not readable: {error}") from error
    statement = _decode(payload, _Statement)
    resources = statement.predicate.resources
    if statement.subject[0].digest.sha256 != _root(each.digest for each in resources):
        raise errors.BadRequest("the signature is not readable: its files don't have the digest of its subject")
    files = {each.name: each.digest for each in resources}
    return Signature(hint or "", payload, signature, frozenset(files.items()))


def sign(key: EllipticCurvePrivateKey, subject: str, files: Iterable[tuple[str, str]]) -> bytes:
    """Return a bundle over files: paths, and SHA-256 in hex."""
    resources = [{"name": name, "digest": digest, "algorithm": "sha256"} for name, digest in sorted(files)]
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": subject, "digest": {"sha256": _root(each["digest"] for each in resources)}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {"serialization": serialization, "resources": resources},
    }
    payload = msgspec.json.encode(statement)
    signature = key.sign(_sealed(payload), ECDSA(_HASHES[key.curve.name]))
    bundle = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": fingerprint(key.public_key())}, "tlogEntries": []},
        # JSON has bytes in base64.
        "dsseEnvelope": {"payload": payload, "payloadType": _PAYLOAD_TYPE, "signatures": [{"sig": signature, "keyid": ""}]},
    }
    return msgspec.json.encode(bundle)


def sign_version(key: EllipticCurvePrivateKey, subject: str, digest: str) -> bytes:
    """Return a bundle over the digest of a manifest."""
    return sign(key, subject, [_manifest_file(digest)])


def read_private_key(pem: bytes, password: bytes | None) -> EllipticCurvePrivateKey:
    """Raises BadRequest, and TypeError if it needs a password."""
    try:
        key = serialization.load_pem_private_key(pem, password)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise errors.BadRequest("the file is no private key in PEM, or its password is another one") from error
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise _wrong_curve()
    return key


def read_public_key(pem: str) -> EllipticCurvePublicKey:
    """Raises BadRequest."""
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise errors.BadRequest("this is no public key in PEM", hint="write what `openssl ec -pubout` prints") from error
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise _wrong_curve()
    return key


def fingerprint(key: EllipticCurvePublicKey) -> str:
    """Return what bundles call the key: the SHA-256 of its PEM."""
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return sha256(pem).hexdigest()


def _wrong_curve() -> errors.BadRequest:
    hint = "make one: openssl ecparam -name prime256v1 -genkey -noout -out publisher.key"
    return errors.BadRequest("this is no key for P-256, P-384 or P-521", hint=hint)


def _manifest_file(digest: str) -> tuple[str, str]:
    return image_layout.blob(digest), digest.removeprefix("sha256:")


def _root(digests: Iterable[str]) -> str:
    return sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _sealed(payload: bytes) -> bytes:
    """Return what is signed: the pre-authentication encoding of DSSE 1.0."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _decode(data: bytes, kind: type[Decoded]) -> Decoded:
    try:
        # As text: msgspec doesn't look at the bytes of fields that it skips.
        return msgspec.json.decode(data.decode(), type=kind)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise errors.BadRequest(f"the signature is not readable: {str(error)[:200]}") from error
