"""Decides when a pool's hook is called, so that each wish is called for once. Pure.

A wish is a number of workers. Its call has a key, which stays the same in all attempts, so that a hook can recognize a repetition.
"""

from collections.abc import Callable
from uuid import UUID

import msgspec
from msgspec.structs import replace

from features.autoscaling.contract import PoolScaling
from shared.timing.backoff import Backoff
from shared.worker_pools import WorkerPool

HOOK_SECONDS = 60.0
#: A call that is not over after this long has lost the replica that made it.
LOST_SECONDS = HOOK_SECONDS + 15.0
_BACKOFF = Backoff(first_seconds=5.0, longest_seconds=300.0)


class ScaleCall(msgspec.Struct, frozen=True):
    key: UUID
    pool: str
    began_at: float
    current: int
    wanted: int
    reason: str
    attempts: int
    #: Of the last attempt.
    tried_at: float
    #: None while the hook runs, and if the replica that called it ended before.
    ended_at: float | None = None
    #: Why the last attempt failed; empty if it did not.
    problem: str = ""
    #: How many attempts have failed in a row, also for wishes before this one.
    failures: int = 0


class HookRequest(msgspec.Struct, frozen=True):
    """What a hook gets, as JSON."""

    #: The same in all attempts for the same wish.
    key: UUID
    pool: str
    #: Ready and starting workers.
    current: int
    wanted: int
    #: Nodes to stop, if there are too many.
    drain: tuple[str, ...]
    reason: str


def plan_call(pool: WorkerPool, scaling: PoolScaling, last: ScaleCall | None, now: float, new_key: Callable[[], UUID]) -> ScaleCall | None:
    """Return the attempt to make now; None: nothing to do. ``last`` is the newest call of the pool."""
    current, wanted = scaling.ready + scaling.starting, scaling.wanted
    if last is None:
        return _new_call(scaling, None, now, new_key()) if wanted != current else None
    if last.ended_at is None and now - last.tried_at < LOST_SECONDS:
        return None
    if last.problem and now < (last.ended_at or 0.0) + _BACKOFF.pause(max(1, last.failures)):
        return None
    if last.wanted != wanted:
        return _new_call(scaling, last, now, new_key())
    # Asked again to stop workers, a hook stops no more of them. Asked again to start some, it could buy twice.
    has_too_many = current > wanted and now - last.tried_at >= 2 * pool.start_seconds
    if last.problem or has_too_many:
        return replace(last, attempts=last.attempts + 1, tried_at=now, ended_at=None, problem="")
    return None


def _new_call(scaling: PoolScaling, last: ScaleCall | None, now: float, key: UUID) -> ScaleCall:
    current, failures = scaling.ready + scaling.starting, 0 if last is None else last.failures
    return ScaleCall(key, scaling.pool, now, current, scaling.wanted, scaling.reason, attempts=1, tried_at=now, failures=failures)
