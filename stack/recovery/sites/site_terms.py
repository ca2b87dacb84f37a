"""Terms and leases of sites: what the backup agent and `aicli stack promote` decide. Pure.

A site is one stack with its database. The site with the highest term in the store owns the mesh. No clock is compared between sites: each
counts seconds of its CLOCK_BOOTTIME, which also runs while the machine sleeps.

Three rules keep two sites from running requests at the same time, and all depend on an order:
- A site gets a lease only from a check that found its lease file first, and no higher term after that. So a new site that took its term
  and finds no lease file of an earlier term knows that this one never answered, and never will.
- A lease counts from the start of the check, and the new site's wait from the end of its write.
- The lease file says strict only if the gateways have a lease with a limit. They get one without a limit only after the term was marked as
  advisory, permanently: a late write of the lease file can't hide that.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

import msgspec

from shared.api.recovery import SetSiteLease, SiteLeaseMode, SiteLeaseState

CHECK_SECONDS, LEASE_SECONDS = 10.0, 45.0
#: How long a new site waits for a strict one: a lease, and a margin for clocks that run at different speeds.
FENCE_SECONDS = 60.0
#: How long a replaced site tells callers where to go, before its services stop.
REFUSING_SECONDS = 60.0

#: The folder of all objects below.
FOLDER = "site/"
_RECORD = re.compile(r"site/([1-9][0-9]*)\.json")


class SiteRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who owns a term. Written once, if absent."""

    term: int
    site: str
    at: datetime
    url: str = ""
    #: The name of the site before.
    previous: str = ""
    #: Random: tells the attempts of two sites with the same name apart.
    nonce: str


class SiteLeaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Each check replaces it. ``at`` is for people."""

    term: int
    site: str
    at: datetime
    mode: SiteLeaseMode


class SiteAcknowledgement(msgspec.Struct, frozen=True, kw_only=True):
    """The site of the term before runs no request any more."""

    site: str
    at: datetime
    replaced_by: SiteRecord


def record_name(term: int) -> str:
    return f"site/{term}.json"


def lease_name(term: int) -> str:
    return f"site/{term}.lease"


def advisory_name(term: int) -> str:
    """Return the name of the mark, an empty object."""
    return f"site/{term}.advisory"


def acknowledgement_name(ended_term: int) -> str:
    return f"site/{ended_term + 1}.acknowledged"


def find_highest(names: Set[str]) -> int | None:
    """Return the highest term among the names of objects."""
    return max((int(found[1]) for name in names if (found := _RECORD.fullmatch(name))), default=None)


# --- the backup agent


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteState:
    own: SiteRecord
    mode: SiteLeaseMode
    #: When the last check began that found no other owner.
    confirmed_at: float | None = None
    #: Final.
    replaced_by: SiteRecord | None = None
    replaced_at: float = 0.0
    #: No gateway runs a request any more: they have confirmed it, or the services were stopped.
    is_fenced: bool = False
    is_acknowledged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCheck:
    """What a check has read: first its own lease file and mark, then the highest term."""

    began_at: float
    #: Of the lease file, or ADVISORY if the term is marked; None if there is no lease file.
    announced: SiteLeaseMode | None
    is_marked: bool
    highest: SiteRecord | None


@dataclass(frozen=True, slots=True)
class WriteLease:
    mode: SiteLeaseMode


@dataclass(frozen=True, slots=True)
class MarkAdvisory:
    """Put the mark if absent."""


@dataclass(frozen=True, slots=True)
class SetGatewayLease:
    """Send ``lease_request``, and once more with the clock of the reply if its state is another one. A reply with ``state`` confirms it;
    after that of ENDED, continue with ``is_fenced``."""

    state: SiteLeaseState
    #: By our clock; None for no limit.
    ends_at: float | None = None


@dataclass(frozen=True, slots=True)
class WriteAcknowledgement:
    """Then continue with ``is_acknowledged``."""


@dataclass(frozen=True, slots=True)
class StopServices:
    """Write ``replaced.json``, and stop. Then continue with ``is_fenced``."""


Step = WriteLease | MarkAdvisory | SetGatewayLease | WriteAcknowledgement | StopServices


def decide(site: SiteState, check: StoreCheck | None, now: float) -> tuple[SiteState, tuple[Step, ...]]:
    """Return what to do now, in this order, up to the first step that fails. ``check`` is None if the store could not be read."""
    if check is not None and check.highest is not None and site.replaced_by is None and _is_other(check.highest, site.own):
        site = replace(site, replaced_by=check.highest, replaced_at=now)
    if site.replaced_by is not None:
        return site, tuple(_end(site, now))
    if check is None or check.highest is None or check.highest.term < site.own.term:
        # A store that has lost our term proves nothing, either.
        is_over = site.confirmed_at is None or now - site.confirmed_at >= LEASE_SECONDS
        suspends = site.mode is SiteLeaseMode.STRICT and is_over
        return site, (SetGatewayLease(SiteLeaseState.SUSPENDED),) if suspends else ()
    site = replace(site, confirmed_at=check.began_at)
    if check.announced is None:
        return site, (WriteLease(SiteLeaseMode.ADVISORY),)
    ends_at = check.began_at + LEASE_SECONDS
    if site.mode is SiteLeaseMode.STRICT:
        return site, (SetGatewayLease(SiteLeaseState.ACTIVE, ends_at), WriteLease(SiteLeaseMode.STRICT))
    granted = SetGatewayLease(SiteLeaseState.ACTIVE, None if check.is_marked else ends_at)
    return site, (granted, WriteLease(SiteLeaseMode.ADVISORY) if check.is_marked else MarkAdvisory())


def _is_other(highest: SiteRecord, own: SiteRecord) -> bool:
    return highest.term > own.term or (highest.term == own.term and highest.nonce != own.nonce)


def _end(site: SiteState, now: float) -> list[Step]:
    steps: list[Step] = []
    if not site.is_fenced:
        steps.append(SetGatewayLease(SiteLeaseState.ENDED))
    elif not site.is_acknowledged:
        steps.append(WriteAcknowledgement())
    if now - site.replaced_at >= REFUSING_SECONDS:
        steps.insert(0, StopServices())
    return steps


@dataclass(frozen=True, slots=True)
class GatewayClock:
    """PostgreSQL's clock, as a reply of the gateway had it."""

    now: datetime
    #: By our clock.
    received_at: float


def lease_request(site: SiteState, step: SetGatewayLease, clock: GatewayClock | None) -> SetSiteLease:
    """Return the call. If the step has a limit and ``clock`` is None, the call only gets the clock."""
    seconds = None
    if step.ends_at is not None:
        # That the clock was read when we received it, rather than earlier, makes the lease end earlier.
        seconds = LEASE_SECONDS if clock is None else step.ends_at - clock.received_at
    other = site.replaced_by
    return SetSiteLease(
        term=site.own.term,
        site=site.own.site,
        state=step.state,
        seconds=seconds,
        since=None if clock is None or seconds is None else clock.now,
        replaced_by=None if other is None else other.site,
        replaced_url=None if other is None else other.url,
    )


# --- promote and restore


class TermOutcome(StrEnum):
    WON = "won"
    LOST_RACE = "lost_race"
    #: Put the same record again.
    UNKNOWN = "unknown"


def judge_put(own: SiteRecord, found: SiteRecord | None) -> TermOutcome:
    """Return whether we own the term, from what the store has under its name after ``put_if_absent``, whatever that has replied: its reply
    may be lost. ``found`` is None if there is nothing."""
    if found is None:
        return TermOutcome.UNKNOWN
    return TermOutcome.WON if found.nonce == own.nonce else TermOutcome.LOST_RACE


class Fence(StrEnum):
    """Whether the new site may answer."""

    OPEN = "open"
    WAIT = "wait"
    #: Only a person knows whether the old site is off: ``--old-site-is-off``.
    ASK = "ask"
    LOST_RACE = "lost_race"


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceCheck:
    """What was read after our term was written."""

    highest: int
    #: Of the lease files, by term; ADVISORY if the term is marked.
    leases: Mapping[int, SiteLeaseMode]
    #: Terms that were acknowledged to have ended.
    ended: Set[int]


def decide_fence(own_term: int, written_at: float, check: FenceCheck, now: float, *, old_site_is_off: bool = False) -> Fence:
    """``written_at``: when we learned that the term is ours, by the clock of ``now``."""
    if check.highest > own_term:
        return Fence.LOST_RACE
    # Earlier sites had ended before this one began, and later ones never began.
    last = max((term for term in check.leases if term < own_term), default=1)
    if old_site_is_off or last in check.ended:
        return Fence.OPEN
    if now - written_at < FENCE_SECONDS:
        return Fence.WAIT
    return Fence.OPEN if check.leases.get(last) is SiteLeaseMode.STRICT else Fence.ASK
