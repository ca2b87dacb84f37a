"""Decides for all pools how many workers they should have, from snapshots of the mesh. Pure."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from features.autoscaling.contract import PoolScaling
from features.autoscaling.rules.advice import FRESH_SECONDS, ScalingState, advise, is_spent
from features.autoscaling.rules.demand import PoolDemand, ScalingSnapshot, choose_idle, read_demand
from shared.worker_pools import WorkerPool

#: As often as the simulation, with which the advice was tuned. A pool without a ready worker does not wait for it.
DECIDE_SECONDS = 15.0
#: Of the looks and rounds.
_JITTER_SECONDS = 1.0
#: Seconds of snapshots that the means need, and some more for jitter.
_KEPT_SECONDS = 330.0


class PoolDecision(msgspec.Struct, frozen=True):
    """What the next leader continues from, and the other replicas show."""

    state: ScalingState
    scaling: PoolScaling


class Autoscaler:
    def __init__(self) -> None:
        self.snapshots: list[ScalingSnapshot] = []
        self.decisions: dict[str, PoolDecision] = {}
        self._decided_at: dict[str, float] = {}

    def add(self, snapshot: ScalingSnapshot) -> None:
        """Add a snapshot. Only the newest one is less than DECIDE_SECONDS younger than the one before, so that there are few."""
        if len(self.snapshots) > 1 and self.snapshots[-1].at - self.snapshots[-2].at < DECIDE_SECONDS - _JITTER_SECONDS:
            self.snapshots.pop()
        self.snapshots = [*(one for one in self.snapshots if one.at > snapshot.at - _KEPT_SECONDS), snapshot]

    def decide(self, pools: Sequence[WorkerPool], now: float) -> bool:
        """Decide for the pools whose time has come. Returns whether a decision is new."""
        names = {pool.name for pool in pools}
        self.decisions = {name: decision for name, decision in self.decisions.items() if name in names}
        return True in [self._decide(pool, now) for pool in pools]

    def _decide(self, pool: WorkerPool, now: float) -> bool:
        before = self.decisions.get(pool.name)
        seen = self.snapshots[-1].at if self.snapshots else 0.0
        if self._decided_at.get(pool.name) == seen:
            return False
        demand = read_demand(self.snapshots, pool)
        state = ScalingState() if before is None else before.state
        is_stuck = demand is not None and bool(demand.waiting) and not demand.ready
        if state.at is not None and 0 <= now - state.at < DECIDE_SECONDS - _JITTER_SECONDS and not is_stuck:
            return False
        advice, state = advise(demand, pool, state, now)
        if advice is None or demand is None:
            return False
        self._decided_at[pool.name] = seen
        scaling = PoolScaling(
            pool=pool.name, ready=demand.ready, starting=demand.starting, wanted=advice.wanted, reason=advice.reason,
            denied=max(0, state.wishes[-1][1] - advice.wanted) if advice.wanted >= pool.max or is_spent(pool, state) else 0,
            waiting=demand.waiting, oldest_seconds=round(demand.oldest_seconds, 1),
            expected_wait_seconds=_expected_wait(demand, pool, state), tokens_per_second=round(demand.tokens_per_second, 1),
            cost_per_hour=(demand.ready + demand.starting) * pool.price_per_hour, given_up=now < state.given_up_until,
            as_of=datetime.fromtimestamp(demand.as_of, UTC),
        )  # fmt: skip
        self.decisions[pool.name] = PoolDecision(state, scaling)
        return True

    def drain(self, pool: WorkerPool) -> tuple[str, ...]:
        """Return the nodes that the pool has too many of, the least busy first."""
        scaling = self.decisions[pool.name].scaling
        return choose_idle(self.snapshots[-1], pool, max(0, scaling.ready + scaling.starting - scaling.wanted)) if self.snapshots else ()


def describe(pools: Sequence[WorkerPool], decisions: Mapping[str, PoolDecision], now: float) -> tuple[PoolScaling, ...]:
    """Return the pools as they are shown, also those without a decision yet."""
    return tuple(_describe(pool, decisions.get(pool.name), now) for pool in pools)


def _describe(pool: WorkerPool, decision: PoolDecision | None, now: float) -> PoolScaling:
    scaling = PoolScaling(pool=pool.name, reason="no data yet") if decision is None else decision.scaling
    hook = "none" if pool.hook is None else "webhook" if pool.hook.command is None else "exec"
    return msgspec.structs.replace(
        scaling, fresh=is_fresh(scaling, now), min=pool.min, max=pool.max, start_seconds=pool.start_seconds, hook=hook
    )


def is_fresh(scaling: PoolScaling, now: float) -> bool:
    return scaling.as_of is not None and now - scaling.as_of.timestamp() <= FRESH_SECONDS


def _expected_wait(demand: PoolDemand, pool: WorkerPool, state: ScalingState) -> float | None:
    if not demand.ready:
        return pool.start_seconds
    if not demand.waiting:
        return 0.0
    return round(demand.waiting / (state.per_replica * demand.ready), 1) if state.per_replica else None
