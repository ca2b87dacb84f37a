"""Which key signs, when the next one is made, and when the last one is forgotten. Pure; the caller brings the clock.

A key is published for a while before it signs, so that whoever reads tokens knows it by then, and stays for a while after its last
signature, so that no token is refused for the change (SECURITY.md §5).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

#: From a key's making to its first signature: three times as long as a published list may be kept, and then some.
PUBLISHED = timedelta(minutes=15)
#: From its last signature until it is forgotten: a token's 10 minutes, the leeway of a minute, and what was kept of the list.
KEPT = timedelta(minutes=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKey:
    """When a key does what; the key itself does not matter here."""

    kid: str
    epoch: int
    made_at: datetime
    signs_from: datetime
    #: The next one signs from then on; None where there is no next one yet.
    retired_at: datetime | None = None

    def is_over(self, now: datetime) -> bool:
        """Its last token has ended."""
        return self.retired_at is not None and now >= self.retired_at + KEPT


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationPlan:
    """What is to be done now."""

    #: Make a key that signs from then on; None where none is needed.
    make: datetime | None
    #: Its epoch.
    epoch: int
    #: The keys that it follows upon.
    retire: tuple[str, ...] = ()
    #: Keys to forget.
    drop: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return self.make is None and not self.drop


def signer_of(keys: Sequence[KnownKey], now: datetime) -> KnownKey | None:
    """The last that may sign. Where each is still to come, the first: another replica's clock is ahead, and its key is known."""
    ready = [key for key in keys if key.signs_from <= now]
    if ready:
        return max(ready, key=_order)
    return min(keys, key=_order, default=None)


def plan(keys: Sequence[KnownKey], now: datetime, lifetime: timedelta) -> RotationPlan:
    """What time alone asks for."""
    over = tuple(key.kid for key in keys if key.is_over(now))
    signer = signer_of([key for key in keys if not key.is_over(now)], now)
    # One that was retired for a key that is gone, which nothing of ours does, has nobody to hand over to.
    if signer is None or (signer.retired_at is not None and not _has_successor(keys, signer)):
        return RotationPlan(make=now, epoch=_last_epoch(keys), drop=over)
    due = signer.signs_from + lifetime
    if _has_successor(keys, signer) or now < due - PUBLISHED:
        return RotationPlan(make=None, epoch=signer.epoch, drop=over)
    return RotationPlan(make=max(due, now + PUBLISHED), epoch=signer.epoch, retire=(signer.kid,), drop=over)


def plan_rotation(keys: Sequence[KnownKey], now: datetime) -> RotationPlan:
    """An administrator wants another key; one that is on its way already will do."""
    signer = signer_of(keys, now)
    if signer is not None and _has_successor(keys, signer):
        return RotationPlan(make=None, epoch=signer.epoch)
    retire = () if signer is None else (signer.kid,)
    return RotationPlan(make=now if signer is None else now + PUBLISHED, epoch=_last_epoch(keys), retire=retire)


def plan_emergency(keys: Sequence[KnownKey], now: datetime) -> RotationPlan:
    """A key has leaked: all are forgotten, and no token from before is good."""
    return RotationPlan(make=now, epoch=_last_epoch(keys) + 1, drop=tuple(key.kid for key in keys))


def _has_successor(keys: Sequence[KnownKey], signer: KnownKey) -> bool:
    return any(_order(key) > _order(signer) for key in keys)


def _last_epoch(keys: Sequence[KnownKey]) -> int:
    return max((key.epoch for key in keys), default=0)


def _order(key: KnownKey) -> tuple[int, datetime, str]:
    return key.epoch, key.signs_from, key.kid
