"""Decides what a delivery is: the bytes and signatures of an event, and what follows an attempt. Pure."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID, uuid5

import msgspec
from standardwebhooks import Webhook

from features.webhooks.contract import EventType
from shared.timing import retry_after_header

#: After each failure, as in the specification of Standard Webhooks.
PAUSES_SECONDS = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
_JITTER = 0.1
_MAX_RETRY_AFTER_SECONDS = 3600.0
_GONE = 410
_EVENTS = UUID("0d4c6f0e-3b8a-4f6e-9c55-7e2b1a9d4c83")


class Result(StrEnum):
    """The values of the label ``result``."""

    DELIVERED = "delivered"
    FAILED = "failed"
    #: There was no HTTP answer, or no address that may be connected.
    UNREACHABLE = "unreachable"
    #: The receiver wants no events any more.
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Verdict:
    result: Result
    #: Until the next attempt; None: there is none.
    pause_seconds: float | None


class _Subject(msgspec.Struct, frozen=True):
    id: str


class _Event(msgspec.Struct, frozen=True):
    id: str
    type: EventType
    created_at: int
    timestamp: str
    data: _Subject
    object: str = "event"


def derive_event_id(endpoint: UUID, event_type: EventType, about: str) -> UUID:
    """Return the same id for the same event, also after a restore: receivers ignore the ids that they know."""
    return uuid5(_EVENTS, f"{endpoint}|{event_type}|{about}")


def write_event(event_id: str, event_type: EventType, about: str, now: datetime) -> str:
    """Return the body. It names the object that it is about, and has no prompts and answers."""
    event = _Event(event_id, event_type, int(now.timestamp()), now.isoformat(timespec="seconds"), _Subject(about))
    return msgspec.json.encode(event).decode()


def sign(event_id: str, body: str, secrets: Iterable[str], now: datetime) -> dict[str, str]:
    """Return the headers of an attempt."""
    signatures = (Webhook(secret).sign(event_id, now, body) for secret in secrets)
    return {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def judge(
    attempt: int, status: int | None, retry_after: str, now: datetime, *, is_test: bool, draw: Callable[[], float] = random.random
) -> Verdict:
    """Decide what follows the attempt with this number, from 1. ``draw`` returns numbers from 0 to 1."""
    if status is not None and 200 <= status < 300:
        return Verdict(Result.DELIVERED, None)
    if status == _GONE:
        return Verdict(Result.GONE, None)
    result = Result.UNREACHABLE if status is None else Result.FAILED
    if is_test or attempt > len(PAUSES_SECONDS):
        return Verdict(result, None)
    pause = PAUSES_SECONDS[attempt - 1] * (1 + _JITTER * (2 * draw() - 1))
    wanted = retry_after_header.read(retry_after, now.timestamp()) or 0.0
    return Verdict(result, max(pause, min(wanted, _MAX_RETRY_AFTER_SECONDS)))
