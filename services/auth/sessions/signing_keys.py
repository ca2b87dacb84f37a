"""A key that signs access tokens, and the protocols of those who use it. Pure but for the randomness."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from joserfc.jwk import OKPKey


@dataclass(frozen=True)
class PrivateSigningKey:
    private: Ed25519PrivateKey
    #: After an emergency rotation the epoch changes, and tokens of earlier epochs are invalid.
    epoch: int

    @classmethod
    def from_raw(cls, raw: bytes, epoch: int) -> "PrivateSigningKey":
        """``raw``: the 32 private bytes."""
        return cls(Ed25519PrivateKey.from_private_bytes(raw), epoch)

    @classmethod
    def generate(cls, epoch: int) -> "PrivateSigningKey":
        return cls(Ed25519PrivateKey.generate(), epoch)

    @cached_property
    def jwk(self) -> OKPKey:
        return OKPKey(self.private, None)

    @cached_property
    def kid(self) -> str:
        """The RFC 7638 thumbprint."""
        return self.jwk.thumbprint()

    @property
    def public(self) -> Ed25519PublicKey:
        return self.private.public_key()

    @property
    def x(self) -> str:
        """The public key, as RFC 8037 §2 encodes it."""
        return str(self.jwk["x"])

    def issuer(self, mesh_issuer: str) -> str:
        """Return the issuer of its tokens. It contains the epoch, so a token of another epoch is invalid even if signed correctly."""
        return f"{mesh_issuer}/{self.epoch}" if self.epoch else mesh_issuer


class VerificationKeys(Protocol):
    """The keys that are valid now."""

    def signer(self) -> PrivateSigningKey:
        """Return the key to sign with."""
        ...

    async def find(self, kid: str) -> PrivateSigningKey | None:
        """Return None if no valid key has this id. May ask PostgreSQL whether another replica has made it; raises Unavailable."""
        ...


class KeySealer(Protocol):
    """See ``services.auth.sealing``."""

    def seal(self, purpose: str, owner: object, plain: bytes) -> bytes: ...

    def open(self, purpose: str, owner: object, sealed: bytes) -> bytes:
        """Raises Unavailable if it was sealed with another DATA_KEY, and Internal if it was sealed for something else or changed."""
        ...

    def is_outdated(self, sealed: bytes) -> bool:
        """Return whether it is sealed with DATA_KEY_OLD."""
        ...
