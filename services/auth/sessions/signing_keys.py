"""The keys that sign access tokens: decide which one signs, when the next one is created, and when the last one is dropped.

Pure but for the randomness; the caller brings the clock. A key is published for a while before it signs, so that all readers of tokens know
it by then, and stays for a while after its last signature, so that no token is refused because of the rotation (SECURITY.md §5).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from joserfc.jwk import OKPKey

#: From creation to the first signature: more than three times as long as a published list may be cached.
PUBLISHED = timedelta(minutes=15)
#: From the last signature until it is dropped: a token's 10 minutes, a minute of leeway, and the time that the list may be cached.
KEPT = timedelta(minutes=20)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKey:
    """The dates of a key, without the key."""

    kid: str
    epoch: int
    made_at: datetime
    signs_from: datetime
    #: When the next key begins to sign; None if there is none yet.
    retired_at: datetime | None = None

    def is_over(self, now: datetime) -> bool:
        """Return whether its last token has expired."""
        return self.retired_at is not None and now >= self.retired_at + KEPT


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationPlan:
    #: Create a key that signs from then on; None if none is needed.
    make: datetime | None
    epoch: int
    retire: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return self.make is None and not self.drop


def signer_of(keys: Sequence[KnownKey], now: datetime) -> KnownKey | None:
    """Return the newest key that may sign. If none may yet, another replica's clock is ahead: return the earliest."""
    ready = [key for key in keys if key.signs_from <= now]
    if ready:
        return max(ready, key=_order)
    return min(keys, key=_order, default=None)


def plan(keys: Sequence[KnownKey], now: datetime, lifetime: timedelta) -> RotationPlan:
    """Decide what is due by time alone."""
    over = tuple(key.kid for key in keys if key.is_over(now))
    signer = signer_of([key for key in keys if not key.is_over(now)], now)
    # A key that was retired for a missing successor: no code of ours causes it.
    if signer is None or (signer.retired_at is not None and not _has_successor(keys, signer)):
        return RotationPlan(make=now, epoch=_last_epoch(keys), drop=over)
    due = signer.signs_from + lifetime
    if _has_successor(keys, signer) or now < due - PUBLISHED:
        return RotationPlan(make=None, epoch=signer.epoch, drop=over)
    return RotationPlan(make=max(due, now + PUBLISHED), epoch=signer.epoch, retire=(signer.kid,), drop=over)


def plan_rotation(keys: Sequence[KnownKey], now: datetime) -> RotationPlan:
    """Plan a rotation that an administrator asked for, unless one is on its way already."""
    signer = signer_of(keys, now)
    if signer is not None and _has_successor(keys, signer):
        return RotationPlan(make=None, epoch=signer.epoch)
    retire = () if signer is None else (signer.kid,)
    return RotationPlan(make=now if signer is None else now + PUBLISHED, epoch=_last_epoch(keys), retire=retire)


def plan_emergency(keys: Sequence[KnownKey], now: datetime, above: int = 0) -> RotationPlan:
    """Plan for a leaked key: drop all keys, which invalidates all earlier tokens. ``above``: an epoch that the keys may not show."""
    return RotationPlan(make=now, epoch=max(_last_epoch(keys), above) + 1, drop=tuple(key.kid for key in keys))


def _has_successor(keys: Sequence[KnownKey], signer: KnownKey) -> bool:
    return any(_order(key) > _order(signer) for key in keys)


def _last_epoch(keys: Sequence[KnownKey]) -> int:
    return max((key.epoch for key in keys), default=0)


def _order(key: KnownKey) -> tuple[int, datetime, str]:
    return key.epoch, key.signs_from, key.kid
