"""What must hold for every call and for its bookings, whatever the fault (RELIABILITY.md §2, I1 to I5 and I7). Pure.

An answer repeats the prompt, whose words name the request, so a word that is missing, doubled or from another request shows.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.chaos.history import Call
from tests.chaos.ledger import Books, Logged
from tests.chaos.oracle import CONNECTION_LOST, DONE, GAVE_UP, HANGS

#: Tokens in flight to a client when its answer ended early: a chunk, and what a worker makes until a cancel reaches it.
IN_FLIGHT_TOKENS = 4
#: Ends that no fault may cause.
NEVER = frozenset({HANGS, "internal", "not_authenticated", "nothing"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What a fault may do to calls, apart from a pause."""

    #: How calls may end that run during the fault.
    codes: frozenset[str] = frozenset()
    #: Monotonic seconds; before and after them nothing may fail.
    since: float = float("-inf")
    until: float = float("inf")
    deadline_seconds: float = 30.0
    #: Whether calls that had their first text before the fault must succeed.
    running_survive: bool = False
    #: Tokens in flight to a client that leaves: a worker continues until a cancel reaches it, through a gateway that may hang.
    in_flight_tokens: int = IN_FLIGHT_TOKENS
    #: A killed gateway can't say what became of its calls; their reservations expire in the users' favor.
    gateway_died: bool = False


def violations(calls: Sequence[Call], books: Books, allowed: Allowed) -> list[str]:
    """Return what did not hold."""
    found = [f"{_name(call)}: {what}" for call in calls for what in (*_of_call(call, allowed), *_of_books(call, books, allowed))]
    found += _of_accounts(books)
    twice = [key for key, times in Counter(call.request_id for call in calls if call.request_id and call.key is None).items() if times > 1]
    found += [f"two calls have the id {key}" for key in twice]
    return found


def _name(call: Call) -> str:
    return (
        f"{call.door} {call.prompt[:24]!r} {call.request_id or ''} began {call.began:.2f} took {call.ended - call.began:.2f} s, {call.ends}"
    )


def _of_call(call: Call, allowed: Allowed) -> Iterator[str]:
    # I1: one terminal event, in time.
    if len(call.ends) != 1:
        yield f"I1: {len(call.ends)} terminal events"
    if call.ended - call.began > allowed.deadline_seconds + 5:
        yield "I1: it took longer than its deadline"
    yield from (f"I1: {code} must never be seen" for code in call.ends if code in NEVER)
    if call.failed:
        yield from (f"I1: {code} is not what this fault looks like" for code in call.ends if code not in allowed.codes | NEVER | {DONE})
        if call.ended < allowed.since or call.began > allowed.until:
            yield "I1: it failed, and nothing was broken"
        if allowed.running_survive and call.pieces and call.pieces[0].at < allowed.since:
            yield "I1: it was running when the fault came, and failed"
    # I2 and I7: the whole answer in its order, and no one else's.
    if call.succeeded and call.text != call.prompt:
        yield f"I2: the text differs at {_difference(call)}"
    if not call.prompt.startswith(call.text):
        yield f"I2: no beginning of what was asked for, at {_difference(call)}"
    numbers = [piece.number for piece in call.pieces if piece.number]
    if numbers and numbers != list(range(1, len(numbers) + 1)):
        yield "I2: the chunks' numbers have a gap or a repeat"
    words = len(call.prompt.split())
    if call.succeeded and call.usage not in (None, (words, words)):
        yield f"I4: the usage is {call.usage} and should be {words} and {words}"


def _difference(call: Call) -> str:
    place = next(
        (place for place, (one, other) in enumerate(zip(call.text, call.prompt, strict=False)) if one != other),
        min(len(call.text), len(call.prompt)),
    )
    return f"{place}: {call.text[place : place + 30]!r} and not {call.prompt[place : place + 30]!r}"


def _of_books(call: Call, books: Books, allowed: Allowed) -> Iterator[str]:
    if call.request_id is None:
        return
    row = books.logged.get(call.request_id)
    delivered = len(call.text.split())
    if row is None:
        if call.succeeded and not allowed.gateway_died:
            yield "I3: it has no row in request_logs"
    else:
        yield from _of_row(call, row, delivered, allowed)
    yield from _of_reservation(call, books, allowed)


def _of_reservation(call: Call, books: Books, allowed: Allowed) -> Iterator[str]:
    assert call.request_id is not None
    reservation = books.reservations.get(call.request_id)
    charged = books.charged.get(call.request_id, 0)
    if reservation is None:
        if charged:
            yield f"I3: {charged} micro-credits were taken without a reservation"
        # If no call has a reservation, this gateway has no ledger yet.
        if call.succeeded and books.reservations:
            yield "I3: it has no reservation"
        return
    if reservation.state == "reserved" and not allowed.gateway_died:
        yield "I5: its reservation is open"
    if call.succeeded and reservation.state != "settled" and not allowed.gateway_died:
        yield f"I3: its reservation is {reservation.state}"
    if charged != (reservation.settled_micro or 0):
        yield f"I3: {charged} micro-credits were taken and {reservation.settled_micro} settled"
    row = books.logged.get(call.request_id)
    if not call.text and call.failed and row is not None and row.completion_tokens:
        yield f"I4: nothing was delivered, and {row.completion_tokens} tokens were paid for"


def _of_row(call: Call, row: Logged, delivered: int, allowed: Allowed) -> Iterator[str]:
    words = len(call.prompt.split())
    if call.succeeded and (row.status, row.prompt_tokens, row.completion_tokens) != ("success", words, words):
        yield f"I3: its row says {row}"
    # A client that reconnected was sent some of it twice, and paid once. A client that gave up finds the rest under its key.
    is_over = CONNECTION_LOST not in call.ends and GAVE_UP not in call.ends
    if row.completion_tokens > delivered + allowed.in_flight_tokens and is_over:
        yield f"I4: {row.completion_tokens} tokens are billed and {delivered} were delivered"


def _of_accounts(books: Books) -> Iterator[str]:
    yield from (f"I3: the entries of {transfer} do not add up to zero" for transfer in books.lopsided)
    for owner, account in books.accounts.items():
        if account.left_micro != account.entries_micro:
            yield f"I3: {owner} has {account.left_micro} and the entries say {account.entries_micro}"
        if account.reserved_micro and not account.open:
            yield f"I5: {account.reserved_micro} micro-credits of {owner} are held and no reservation is open"
        if account.left_tokens != account.entries_tokens:
            yield f"I3: the plan of {owner} has {account.left_tokens} tokens and the entries say {account.entries_tokens}"
        if account.held_tokens and not account.open:
            yield f"I5: {account.held_tokens} tokens of the plan of {owner} are held and no reservation is open"
