"""What must hold of a history of requests around one kill. Pure: attempts, the fault and the rows in, violations out.

The invariants are those of RELIABILITY.md §2: one terminal event for each request and no hang (I1), the text whole or a
part from its beginning (I2), rows that say what the answers said (I3), nothing billed that could not be received (I4).
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum

from shared.types import RequestId

#: How an attempt ends well; everything else is an error's code.
DONE = "done"
#: The connection broke: what a client of a killed process sees.
CONNECTION_LOST = "connection_lost"
#: Given up on by the test: never allowed.
HANGS = "hangs"
#: Told to come again until its patience was over.
GAVE_UP = "gave_up"

#: Tokens that were sent and not yet read when a link broke.
IN_FLIGHT_TOKENS = 3


class Door(StrEnum):
    """The way a request came in."""

    GATEWAY = "gateway"
    WEB = "web"
    RPC = "rpc"
    #: RPC as well, by a client that is on Hyperswarm alone.
    OUTSIDE = "outside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One request, as its caller saw it."""

    door: Door
    prompt: str
    #: Monotonic seconds.
    began: float
    ended: float
    #: What came of the answer.
    text: str = ""
    #: Every terminal event, in order: DONE, or an error's code.
    ends: tuple[str, ...] = ()
    #: None where no answer began.
    status: int | None = None
    request_id: RequestId | None = None
    #: Prompt and completion tokens of an answer that is whole.
    usage: tuple[int, int] | None = None

    @property
    def succeeded(self) -> bool:
        return self.ends == (DONE,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What was done, and whom it may touch with what."""

    began: float
    #: From here on every request that begins must succeed.
    over: float
    doors: Set[Door]
    codes: Set[str]
    #: Whether the store went away for good together with the gateway, whose queue of rows went with it.
    loses_rows: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Of request_logs."""

    status: str
    prompt_tokens: int
    completion_tokens: int


def violations(attempts: Sequence[Attempt], fault: Fault, rows: Mapping[RequestId, Row], *, deadline_seconds: float) -> list[str]:
    """Empty when everything held."""
    found = [f"{attempt}: {what}" for attempt in attempts for what in _of_attempt(attempt, fault, rows, deadline_seconds)]
    ids = [attempt.request_id for attempt in attempts if attempt.request_id is not None]
    if len(ids) != len(set(ids)):
        found.append("two requests have the same id")
    return found


def usage_of(rows: Mapping[RequestId, Row]) -> tuple[int, int]:
    """Requests and tokens that usage_stats must add up to."""
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
