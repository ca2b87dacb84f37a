"""The lists of worker pools, and of the calls of the hooks that start and stop workers."""

from features.autoscaling.contract import PoolScaling, ScaleCallEntry, ScaleCallState
from shared.lists.columns import Column, Listing, Tone

_RESULTS = {
    ScaleCallState.RUNNING: ("Running", Tone.WARN),
    ScaleCallState.DONE: ("OK", Tone.GOOD),
    ScaleCallState.FAILED: ("Failed", Tone.BAD),
}


def _state(pool: PoolScaling) -> tuple[str, Tone]:
    if pool.given_up:
        return "Given up", Tone.BAD
    if pool.denied:
        return "Limited", Tone.WARN
    return ("OK", Tone.GOOD) if pool.fresh else ("No data", Tone.WARN)


def _reason(pool: PoolScaling) -> str:
    if pool.as_of is None:
        return "no data yet"
    return pool.reason if pool.fresh else f"no data since {pool.as_of:%Y-%m-%d %H:%M:%S} UTC, so nothing changes; last: {pool.reason}"


POOLS: Listing[PoolScaling] = Listing(
    columns=(
        Column(title="Pool", show=lambda pool: pool.pool, wraps=True),
        Column(title="State", show=lambda pool: _state(pool)[0], tone=lambda pool: _state(pool)[1]),
        Column(title="Ready", show=lambda pool: pool.ready, is_number=True),
        Column(title="Starting", show=lambda pool: pool.starting, rank=2, is_number=True),
        Column(title="Wanted", show=lambda pool: pool.wanted if pool.as_of else None, is_number=True),
        Column(title="Limits", show=lambda pool: f"{pool.min} to {pool.max}", rank=4),
        Column(title="Queued", show=lambda pool: pool.waiting, is_number=True),
        Column(title="Longest wait", show=lambda pool: f"{pool.oldest_seconds:.0f} s" if pool.waiting else None, rank=5, is_number=True),
        Column(title="Cost per hour", show=lambda pool: f"{pool.cost_per_hour:,.2f}", rank=3, is_number=True),
        Column(title="Reason", show=_reason, wraps=True, below=True),
    ),
    empty="No pools of workers.",
)
CALLS: Listing[ScaleCallEntry] = Listing(
    columns=(
        Column(title="Time", show=lambda call: call.at),
        Column(title="Pool", show=lambda call: call.pool, wraps=True),
        Column(title="Change", show=lambda call: f"{call.current} → {call.wanted}"),
        Column(title="Result", show=lambda call: _RESULTS[call.state][0], tone=lambda call: _RESULTS[call.state][1]),
        Column(title="Attempts", show=lambda call: call.attempts, rank=2, is_number=True),
        Column(title="Problem", show=lambda call: call.problem or None, wraps=True, below=True),
        Column(title="Reason", show=lambda call: call.reason, wraps=True, below=True),
    ),
    empty="No hook has been called yet.",
)
