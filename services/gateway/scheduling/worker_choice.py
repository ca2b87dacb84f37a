"""Which of the candidates runs a request: first who may at all, then whom it is best to ask.  Pure; the caller brings the dice.

Both are rows of small steps over the table of candidates. MAY steps give a reason against one candidate, or none; a step can only
take away, so trying again never reaches a worker that the first attempt might not use. PREFER steps narrow the rows to the better
ones, and give back all that they got where none is better. A canary, an A/B test, local before API, or the cheapest first is one
function more in PREFER; a rule about who must not is one more in MAY.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum

from services.gateway.scheduling import prefix_affinity
from services.gateway.scheduling.candidates import Candidate
from services.gateway.scheduling.routing import WorkerRequirements
from services.gateway.scheduling.worker_health import worker_records
from shared import errors
from shared.discovery.directory import DirectoryEntry
from shared.types import TenantId

Rows = Sequence[Candidate]

#: The load guard of LocalAI's prefix routing: a worker that has read the prompt may have this many calls more than the least busy
#: one, and this many times as many.
_MORE_CALLS = 2
_TIMES_AS_MANY = 1.5


# --- prompt privacy ---------------------------------------------------------------------------------------------------------

#: Labels of a machine. Only an administrator can give it TRUSTED, with the ticket; with SHARED=no its owner keeps it private.
TRUSTED = "trusted"
SHARED = "shared"
_YES = frozenset({"yes", "true", "1"})
_NO = frozenset({"no", "false", "0"})


class PromptPrivacy(StrEnum):
    """Which machines may see a tenant's prompts: anyone who runs a worker can read the prompts that it answers."""

    #: All machines, except those that their owners keep private.
    GROUP = "group"
    #: The operator's machines, machines labeled trusted=yes, and the tenant's own.
    TRUSTED = "trusted"


def why_not(tenant: TenantId, owner: str, labels: Mapping[str, str], policy: PromptPrivacy) -> str:
    """Return why the machine may not see the tenant's prompts, as text for people; empty if it may."""
    if owner and owner == str(tenant):
        return ""
    if labels.get(SHARED, "").lower() in _NO:
        return "serves only its owner (label shared=no)"
    if policy is PromptPrivacy.GROUP or not owner or labels.get(TRUSTED, "").lower() in _YES:
        return ""
    return "is not labelled trusted=yes (ROUTING_POLICY=trusted)"


def open_to(tenant: TenantId, workers: Iterable[DirectoryEntry], policy: PromptPrivacy) -> list[DirectoryEntry]:
    """Return the workers that may see the tenant's prompts."""
    return [worker for worker in workers if not why_not(tenant, worker.announcement.owner, worker.announcement.labels, policy)]


# --- who may ------------------------------------------------------------------------------------------------------------


def _by_policy(wish: WorkerRequirements, row: Candidate, rule: PromptPrivacy) -> str:
    said = row.worker.announcement
    return why_not(wish.tenant, said.owner, said.labels, rule)


def _by_file(wish: WorkerRequirements, row: Candidate, _rule: PromptPrivacy) -> str:
    return "" if wish.digest in (None, row.offer.digest) else "has another file of the model"


def _by_failure(wish: WorkerRequirements, row: Candidate, _rule: PromptPrivacy) -> str:
    return "has failed this request" if row.node in wish.not_on else ""


def _by_honesty(_wish: WorkerRequirements, row: Candidate, _rule: PromptPrivacy) -> str:
    return worker_records.why_not(row.quarantine_seconds)


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
