"""The list of rollouts; of one rollout, its targets, guards and steps."""

from shared.amounts import grouped
from shared.api.configuration import RolloutArm, RolloutCondition, RolloutDetails, RolloutEvent, RolloutState, RolloutSummary
from shared.lists.columns import Column, Listing, Tone, of_most, percent

STATES = {
    RolloutState.RUNNING: ("Running", Tone.GOOD),
    RolloutState.HOLDING: ("Waiting for outcomes", Tone.WARN),
    RolloutState.PAUSED: ("Paused", Tone.WARN),
    RolloutState.ROLLED_BACK: ("Rolled back", Tone.BAD),
    RolloutState.PROMOTED: ("Promoted", Tone.GOOD),
    RolloutState.ENDED: ("Ended", Tone.GOOD),
}
_GUARDS = {"errors": "Failed answers", "first_token": "Late first tokens", "thumbs": "Thumbs down", "cost": "Upstream cost"}


def _bad(bad: int, outcomes: int) -> str | None:
    return of_most(bad, outcomes) if outcomes else None


def _milliseconds(value: int | None) -> str | None:
    return None if value is None else f"{value:,} ms"


def _margin(guard: RolloutCondition) -> str:
    if guard.margin is None:
        return "Off"
    if guard.name == "cost":
        return f"× {guard.margin:g}"
    points = f"{100 * guard.margin:g}"
    return f"{points} point{'' if points == '1' else 's'}"


ROLLOUTS: Listing[RolloutSummary] = Listing(
    columns=(
        Column(title="Route", show=lambda row: row.route, wraps=True),
        Column(title="From", show=lambda row: row.plan.baseline, rank=3, wraps=True),
        Column(title="To", show=lambda row: row.plan.candidate, wraps=True),
        Column(title="State", show=lambda row: STATES[row.state][0], tone=lambda row: STATES[row.state][1]),
        Column(title="Share", show=lambda row: percent(row.share), rank=2, is_number=True),
        Column(title="Started", show=lambda row: row.started_at, rank=4),
        Column(title="Reason", show=lambda row: row.reason or None, rank=5, wraps=True, below=True),
    ),
    empty="No rollouts.",
)
GUARDS: Listing[RolloutCondition] = Listing(
    columns=(
        Column(title="Guard", show=lambda guard: _GUARDS.get(guard.name, guard.name)),
        Column(title="Candidate", show=lambda guard: _bad(guard.candidate_bad, guard.candidate_outcomes), rank=3, is_number=True),
        Column(title="Baseline", show=lambda guard: _bad(guard.baseline_bad, guard.baseline_outcomes), rank=3, is_number=True),
        Column(title="Allowed difference", show=_margin, rank=2, is_number=True),
        Column(title="Verdict", show=lambda guard: guard.verdict, wraps=True),
    ),
    empty="No guards.",
)
STEPS: Listing[RolloutEvent] = Listing(
    columns=(
        Column(title="Time", show=lambda event: event.at),
        Column(title="State", show=lambda event: STATES[event.state][0], tone=lambda event: STATES[event.state][1]),
        Column(title="Share", show=lambda event: percent(event.share), is_number=True),
        Column(title="By", show=lambda event: event.author or "the gateways", rank=3, wraps=True),
        Column(title="Reason", show=lambda event: event.reason or None, rank=4, wraps=True),
    ),
    empty="No steps.",
)


def list_arms(found: RolloutDetails) -> Listing[RolloutArm]:
    guards = {guard.name: guard for guard in found.conditions}

    def share(arm: RolloutArm, name: str) -> str | None:
        side = "candidate" if arm is found.arms[0] else "baseline"
        outcomes = getattr(guards.get(name), f"{side}_outcomes", 0)
        return f"{100 * getattr(guards[name], f'{side}_bad') / outcomes:.1f} %" if outcomes else None

    return Listing(
        columns=(
            Column(title="Target", show=lambda arm: arm.target, wraps=True),
            Column(title="Requests", show=lambda arm: arm.requests, is_number=True),
            Column(title="Failed", show=lambda arm: share(arm, "errors"), rank=2, is_number=True),
            Column(title="First token, p50", show=lambda arm: _milliseconds(arm.first_token_p50_ms), rank=2, is_number=True),
            Column(title="First token, p95", show=lambda arm: _milliseconds(arm.first_token_p95_ms), rank=3, is_number=True),
            Column(
                title="Tokens per second",
                show=lambda arm: None if arm.tokens_per_second is None else f"{arm.tokens_per_second:.1f}",
                rank=4,
                is_number=True,
            ),
            Column(title="Thumbs down", show=lambda arm: share(arm, "thumbs"), rank=4, is_number=True),
            Column(
                title="Upstream, per 1,000 tokens",
                show=lambda arm: grouped(round(arm.token_cost_micro)) if arm.token_cost_micro else None,
                rank=5,
                is_number=True,
            ),
        ),
        empty="No targets.",
    )
