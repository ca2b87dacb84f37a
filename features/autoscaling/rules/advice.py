"""Decides how many replicas a pool needs, and says why. Pure."""

import math

import msgspec
from msgspec.structs import replace

from features.autoscaling.rules.demand import PoolDemand
from shared.worker_pools import WorkerPool

#: Older data is no reason for anything.
FRESH_SECONDS = 30.0
TARGET_LOAD = 0.7
#: A pool changes its direction at most this often within the seconds.
MAX_TURNS, TURN_SECONDS = 4, 600.0


class ScalingAdvice(msgspec.Struct, frozen=True):
    wanted: int
    reason: str


class ScalingState(msgspec.Struct, frozen=True):
    """What one pool's advice remembers. Begin with an empty one."""

    wanted: int | None = None
    ready: int = 0
    at: float | None = None
    per_replica: float | None = None
    #: Time and wish, each lower than the one before: the first is the highest of the last ``idle_seconds``.
    wishes: tuple[tuple[float, int], ...] = ()
    #: 1 after a rise, -1 after a fall.
    direction: int = 0
    turns: tuple[float, ...] = ()
    #: Since when no ordered machine became ready.
    short_since: float | None = None
    #: Until when no machine is ordered, because one never became ready.
    given_up_until: float = 0.0
    #: Money spent on the UTC day of ``at``.
    spent: float = 0.0


def advise(demand: PoolDemand | None, pool: WorkerPool, state: ScalingState, now: float) -> tuple[ScalingAdvice | None, ScalingState]:
    """Return how many replicas to run, and the state for the next call. None without fresh data: then nothing must change."""
    if demand is None or now - demand.as_of > FRESH_SECONDS:
        return None, state
    current = min(max(demand.ready + demand.starting if state.wanted is None else state.wanted, pool.min), pool.max)
    if state.wanted is None:
        # Nobody knows yet how much these workers had to do.
        state = replace(state, wishes=((now, current),))
    state = _follow(demand, pool, state, now, current)
    wish, reason = _wish(demand, pool, state)
    # A wish that is not above a later one can no longer be the highest.
    kept = tuple((at, number) for at, number in state.wishes if number > wish and at > now - pool.idle_seconds)
    state = replace(state, wishes=(*kept, (now, wish)))
    cap, cap_reason = _cap(demand, pool, state, now)
    wanted = _step(current, min(wish, cap), min(state.wishes[0][1], cap), pool)
    if direction := (wanted > current) - (wanted < current):
        turns = tuple(at for at in state.turns if at > now - TURN_SECONDS)
        # A rise is never refused, so a fall leaves room for the rise after it.
        if direction < 0 < state.direction and len(turns) > MAX_TURNS - 2:
            wanted, direction, reason = current, state.direction, f"{reason}; held, because the number changed direction {len(turns)} times"
        elif state.direction == -direction:
            turns = (*turns, now)
        state = replace(state, direction=direction, turns=turns)
    if cap < wish:
        reason = f"{reason}; {cap_reason}"
    elif wanted > wish:
        reason = f"{reason}; stops slowly, at the highest wish of the last {pool.idle_seconds:.0f} s"
    return ScalingAdvice(wanted, reason), replace(state, wanted=wanted)


def _follow(demand: PoolDemand, pool: WorkerPool, state: ScalingState, now: float, current: int) -> ScalingState:
    """Note what happened since the last call: the machines that became ready, and the money spent."""
    is_same = demand.ready <= state.ready and state.short_since is not None
    short_since = None if demand.ready >= current else state.short_since if is_same else now
    given_up_until = state.given_up_until
    if short_since is not None and now - short_since >= 2 * pool.start_seconds:
        short_since, given_up_until = None, now + 2 * pool.start_seconds
    midnight = now - now % 86_400
    before = now if state.at is None else state.at
    spent = (state.spent if before >= midnight else 0.0) + current * pool.price_per_hour * max(0.0, now - max(before, midnight)) / 3600
    state = replace(state, ready=demand.ready, at=now, per_replica=demand.per_replica or state.per_replica)
    return replace(state, short_since=short_since, given_up_until=given_up_until, spent=spent)


def _wish(demand: PoolDemand, pool: WorkerPool, state: ScalingState) -> tuple[int, str]:
    rate, speed = max(demand.rate_30, demand.rate_240), state.per_replica
    if speed:
        need = rate / (speed * TARGET_LOAD) + demand.waiting / (speed * pool.start_seconds)
    else:
        need = (demand.slots_used + demand.waiting) * demand.ready / (max(demand.slots, 1) * TARGET_LOAD)
    # Rounding must not order a machine.
    wish = max(math.ceil(need - 1e-9), 1 if rate or demand.waiting or demand.slots_used or demand.has_receipts else 0)
    cpu, gpu = ("CPU over 80 %", demand.cpu, 0.8), ("GPU over 70 %", demand.gpu, 0.7)
    first_text = ("average time to first text over 5 s", demand.first_text_seconds, 5)
    means = (cpu, ("queue over 100", demand.queue, 100), first_text, gpu)
    active = [f"; {name}: 1 more" for name, mean, limit in means if mean is not None and mean > limit]
    return wish + len(active), f"{rate:.3g} requests/s and {demand.waiting} waiting need {wish}{''.join(active)}"


def _cap(demand: PoolDemand, pool: WorkerPool, state: ScalingState, now: float) -> tuple[int, str]:
    """Return the most replicas allowed now. Bounds win over all."""
    if is_spent(pool, state):
        return pool.min, "the budget of this day is spent"
    if now < state.given_up_until:
        return min(max(demand.ready, pool.min), pool.max), f"machines did not become ready within {2 * pool.start_seconds:.0f} s"
    return pool.max, f"max is {pool.max}"


def is_spent(pool: WorkerPool, state: ScalingState) -> bool:
    return pool.budget_per_day is not None and state.spent >= pool.budget_per_day


def _step(current: int, wish: int, highest_wish: int, pool: WorkerPool) -> int:
    """Rise to the wish by at most ``max_step``; fall by at most a quarter to the highest wish."""
    if wish > current:
        wanted = wish if pool.max_step is None else min(wish, current + pool.max_step)
    else:
        wanted = min(current, max(highest_wish, current - max(1, current // 4)))
    return min(max(wanted, pool.min), pool.max)
