"""What must hold for a history of requests around one kill. Pure: takes attempts, the fault and the rows; returns violations.

The invariants are those of RELIABILITY.md §2: each request has one terminal event and does not hang (I1), the text is complete or a
prefix (I2), rows match the answers (I3), and nothing is billed that could not be received (I4).
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum

from shared.types import RequestId

#: The end of a successful attempt; other ends are error codes.
DONE = "done"
#: The connection broke, as it does for a client of a killed process.
CONNECTION_LOST = "connection_lost"
#: The test gave up waiting: never allowed.
HANGS = "hangs"
#: The client was asked to retry until it ran out of time.
GAVE_UP = "gave_up"

#: Tokens that were sent but not yet read when a link broke.
IN_FLIGHT_TOKENS = 3


class Door(StrEnum):
    """The endpoint that a request used."""

    GATEWAY = "gateway"
    WEB = "web"
    RPC = "rpc"
    #: RPC, by a client that is only on Hyperswarm.
    OUTSIDE = "outside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One request, as its caller saw it."""

    door: Door
    prompt: str
    #: Monotonic seconds.
    began: float
    ended: float
    #: The part of the answer that was received.
    text: str = ""
    #: Every terminal event, in order: DONE, or an error's code.
    ends: tuple[str, ...] = ()
    #: None if no response began.
    status: int | None = None
    request_id: RequestId | None = None
    #: Prompt and completion tokens of a complete answer.
    usage: tuple[int, int] | None = None

    @property
    def succeeded(self) -> bool:
        return self.ends == (DONE,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault, and which endpoints may fail with which codes."""

    began: float
    #: Every request that begins after this must succeed.
    over: float
    doors: Set[Door]
    codes: Set[str]
    #: Whether the store went down together with the gateway, so that the gateway's queue of rows was lost.
    loses_rows: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A row of request_logs."""

    status: str
    prompt_tokens: int
    completion_tokens: int


def violations(attempts: Sequence[Attempt], fault: Fault, rows: Mapping[RequestId, Row], *, deadline_seconds: float) -> list[str]:
    """Return what did not hold."""
    found = [f"{attempt}: {what}" for attempt in attempts for what in _of_attempt(attempt, fault, rows, deadline_seconds)]
    ids = [attempt.request_id for attempt in attempts if attempt.request_id is not None]
    if len(ids) != len(set(ids)):
        found.append("two requests have the same id")
    return found


def usage_of(rows: Mapping[RequestId, Row]) -> tuple[int, int]:
    """Return the requests and tokens that usage_stats must add up to."""
    counted = [row for row in rows.values() if row.status == "success" or row.prompt_tokens + row.completion_tokens > 0]
    return len(counted), sum(row.prompt_tokens + row.completion_tokens for row in counted)


def _of_attempt(attempt: Attempt, fault: Fault, rows: Mapping[RequestId, Row], deadline_seconds: float) -> Iterator[str]:
    if len(attempt.ends) != 1:
        yield f"{len(attempt.ends)} terminal events"
    if attempt.ended - attempt.began > deadline_seconds:
        yield f"took {attempt.ended - attempt.began:.1f} s"
    if attempt.status == 500 or "internal" in attempt.ends:
        yield "an internal error"
    if attempt.succeeded:
        yield from _of_success(attempt, fault, rows)
    else:
        yield from _of_failure(attempt, fault, rows)


def _of_success(attempt: Attempt, fault: Fault, rows: Mapping[RequestId, Row]) -> Iterator[str]:
    words = len(attempt.prompt.split())
    if attempt.text != attempt.prompt:
        yield "the text is not what was asked for"
    if attempt.usage != (words, words):
        yield f"the usage should be {words} and {words}"
    row = None if attempt.request_id is None else rows.get(attempt.request_id)
    if row is None:
        if not (fault.loses_rows and fault.began <= attempt.ended and attempt.began < fault.over):
            yield "it has no row"
    elif (row.status, row.prompt_tokens, row.completion_tokens) != ("success", *(attempt.usage or ())):
        yield f"its row says {row}"


def _of_failure(attempt: Attempt, fault: Fault, rows: Mapping[RequestId, Row]) -> Iterator[str]:
    if attempt.ended < fault.began:
        yield "it failed before the fault"
    if attempt.began >= fault.over:
        yield "it failed after the fault"
    if attempt.door not in fault.doors:
        yield "the fault does not touch it"
    for code in attempt.ends:
        if code not in fault.codes:
            yield f"{code} is not what this fault looks like"
    if not attempt.prompt.startswith(attempt.text):
        yield "the text is not the beginning of what was asked for"
    row = None if attempt.request_id is None else rows.get(attempt.request_id)
    if row is not None and row.completion_tokens > len(attempt.text.split()) + IN_FLIGHT_TOKENS:
        yield f"{row.completion_tokens} tokens are billed"
