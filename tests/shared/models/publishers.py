"""Publishers of models: their keys, and versions that they sign."""

from dataclasses import dataclass, field

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.models import manifest, trust_bundle
from shared.models.manifest import Version, VersionConfig, VersionFile

FILES = {"model.gguf": b"weights", "mmproj.gguf": b"eyes"}


@dataclass(frozen=True)
class Publisher:
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def public(self) -> str:
        pem = self.key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return pem.decode()

    @property
    def private(self) -> bytes:
        none = serialization.NoEncryption()
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none)

    def sign(self, digest: str) -> bytes:
        return trust_bundle.sign_version(self.key, "llama3@1", digest)


def manifest_of(files: dict[str, bytes] = FILES) -> bytes:
    found = [VersionFile(path, manifest.digest_of(data), len(data), manifest.digest_of(b"blocks" + data)) for path, data in files.items()]
    return manifest.build(manifest.encode_config(VersionConfig(), found), found)


def version_of(files: dict[str, bytes] = FILES) -> Version:
    return manifest.read(manifest_of(files))


def named(files: dict[str, bytes]) -> list[tuple[str, str]]:
    """Return paths and digests, as in a signature."""
    return [(path, manifest.digest_of(data).removeprefix("sha256:")) for path, data in files.items()]
