"""A key that signs access tokens, and what its users may ask for. Pure but for the randomness."""

import base64
import hashlib
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class PrivateSigningKey:
    """Both halves, opened; made by ``of`` and ``generate``."""

    private: Ed25519PrivateKey
    public: Ed25519PublicKey
    #: RFC 7638 thumbprint.
    kid: str
    #: Which run of keys it belongs to: after an emergency, another.
    epoch: int

    @classmethod
    def of(cls, raw: bytes, epoch: int) -> "PrivateSigningKey":
        """Of its 32 private bytes."""
        private = Ed25519PrivateKey.from_private_bytes(raw)
        public = private.public_key()
        return cls(private, public, thumbprint(public), epoch)

    @classmethod
    def generate(cls, epoch: int) -> "PrivateSigningKey":
        return cls.of(Ed25519PrivateKey.generate().private_bytes_raw(), epoch)

    @property
    def x(self) -> str:
        """The public half, as RFC 8037 §2 writes it."""
        return _base64url(self.public.public_bytes_raw())

    def issuer(self, mesh_issuer: str) -> str:
        """What its tokens name as their issuer: none of an epoch that is over is good under any key."""
        return f"{mesh_issuer}/{self.epoch}" if self.epoch else mesh_issuer


def thumbprint(public: Ed25519PublicKey) -> str:
    """RFC 7638, with the members that RFC 8037 §2 requires of an Ed25519 key."""
    x = _base64url(public.public_bytes_raw())
    return _base64url(hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest())


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class VerificationKeys(Protocol):
    """The keys that are good now."""

    def signer(self) -> PrivateSigningKey:
        """The one that signs; never waits."""
        ...

    async def find(self, kid: str) -> PrivateSigningKey | None:
        """The one of this name; None for a name that is no good key's. May look once whether another replica has made it, and so
        raises Unavailable."""
        ...


class KeySealer(Protocol):
    """See ``services.auth.sealing``."""

    def seal(self, purpose: str, owner: object, plain: bytes) -> bytes: ...

    def open(self, purpose: str, owner: object, sealed: bytes) -> bytes:
        """Raises Unavailable for another DATA_KEY, and Internal for what was not sealed so."""
        ...

    def is_outdated(self, sealed: bytes) -> bool:
        """Under a former DATA_KEY."""
        ...
