"""Which of the candidates runs a request: first who may at all, then whom it is best to ask.  Pure; the caller brings the dice.

Both are rows of small steps over the table of candidates. MAY steps give a reason against one candidate, or none; a step can only
take away, so trying again never reaches a worker that the first attempt might not use. PREFER steps narrow the rows to the better
ones, and give back all that they got where none is better. A canary, an A/B test, local before API, or the cheapest first is one
function more in PREFER; a rule about who must not is one more in MAY.
"""

import random
from collections.abc import Callable, Sequence

from services.gateway.scheduling import prefix_affinity, prompt_privacy
from services.gateway.scheduling.candidates import Candidate
from services.gateway.scheduling.prompt_privacy import PromptPrivacy
from services.gateway.scheduling.routing import WorkerRequirements
from services.gateway.scheduling.worker_health import dishonest_workers
from shared import errors

Rows = Sequence[Candidate]

#: The load guard of LocalAI's prefix routing: a worker that has read the prompt may have this many calls more than the least busy
#: one, and this many times as many.
_MORE_CALLS = 2
_TIMES_AS_MANY = 1.5


# --- who may ------------------------------------------------------------------------------------------------------------


def _by_policy(wish: WorkerRequirements, row: Candidate, rule: PromptPrivacy) -> str:
    said = row.worker.announcement
    return prompt_privacy.why_not(wish.tenant, said.owner, said.labels, rule)


def _by_file(wish: WorkerRequirements, row: Candidate, _rule: PromptPrivacy) -> str:
    return "" if wish.digest in (None, row.offer.digest) else "has another file of the model"


def _by_failure(wish: WorkerRequirements, row: Candidate, _rule: PromptPrivacy) -> str:
    return "has failed this request" if row.node in wish.not_on else ""


def _by_honesty(_wish: WorkerRequirements, row: Candidate, _rule: PromptPrivacy) -> str:
    return dishonest_workers.why_not(row.quarantine_seconds)


MAY: tuple[Callable[[WorkerRequirements, Candidate, PromptPrivacy], str], ...] = (_by_policy, _by_honesty, _by_file, _by_failure)


def eligible(wish: WorkerRequirements, rows: Rows, rule: PromptPrivacy) -> Rows:
    """Those that may run it, full or not. Raises NotReachable, with the reasons, where there is none."""
    found = [row for row in rows if not _why_not(wish, row, rule)]
    if found:
        return found
    if not rows:
        raise errors.NotReachable(f"no worker can run {wish.model} now", hint="see `aicli nodes`")
    # At most three: a caller needs to see one, an operator has `aicli nodes`.
    whys = ", ".join(f"{row.node[:8]}… {_why_not(wish, row, rule)}" for row in rows[:3])
    raise errors.NotReachable(f"no worker of {wish.model} may run this request: {whys}", hint="see `aicli nodes`, and ask its admin")


def _why_not(wish: WorkerRequirements, row: Candidate, rule: PromptPrivacy) -> str:
    return next((why for step in MAY if (why := step(wish, row, rule))), "")


# --- whom to ask --------------------------------------------------------------------------------------------------------


def without_outliers(rows: Rows) -> Rows:
    """Where all are put aside, the one that is back the soonest stays: a model never loses its last worker."""
    return [row for row in rows if not row.rest_seconds] or [min(rows, key=lambda row: row.rest_seconds)]


def _beginning_at_once(_wish: WorkerRequirements, rows: Rows, _rng: random.Random) -> Rows:
    """Rather than one that must load the model, or where others are before it."""
    ready = [row for row in rows if row.begins_at_once]
    if ready:
        return ready
    least = min(row.wait for row in rows)
    return [row for row in rows if row.wait == least]


def _having_read_it(_wish: WorkerRequirements, rows: Rows, _rng: random.Random) -> Rows:
    least = min(row.seats.busy for row in rows)
    most = min(least + _MORE_CALLS, least * _TIMES_AS_MANY + 1)
    readers = [row for row in rows if row.has_read >= prefix_affinity.LEAST_SHARE and row.seats.busy <= most]
    longest = max((row.has_read for row in readers), default=0.0)
    return [row for row in readers if row.has_read == longest] or rows


def _settled(_wish: WorkerRequirements, rows: Rows, rng: random.Random) -> Rows:
    """One that has just come takes part in a tenth of the draws, and in more and more of them."""
    if all(row.share == 1.0 for row in rows):
        return rows
    return [row for row in rows if rng.random() < row.share] or rows


PREFER: tuple[Callable[[WorkerRequirements, Rows, random.Random], Rows], ...] = (_beginning_at_once, _having_read_it, _settled)


def choose_worker(wish: WorkerRequirements, rows: Rows, rng: random.Random) -> Candidate | None:
    """One with room, None where all are full. ``rows`` are eligible ones. Ends with the power of two choices: other gateways choose
    by the same announcements, and must not all follow them to the one least loaded worker."""
    with_room: Rows = [row for row in without_outliers(rows) if row.seats.has_room] if rows else ()
    if not with_room:
        return None
    for step in PREFER:
        with_room = step(wish, with_room, rng)
    first, second = rng.sample(with_room, 2) if len(with_room) > 1 else (with_room[0], with_room[0])
    return first if first.wait <= second.wait else second
