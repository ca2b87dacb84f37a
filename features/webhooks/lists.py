"""The list of webhook endpoints, and what became of their events in words."""

from features.webhooks.contract import EventType, WebhookAttempt, WebhookEndpoint
from shared.lists.columns import Column, Listing, Tone


def state(endpoint: WebhookEndpoint) -> tuple[str, Tone]:
    if endpoint.disabled_why:
        return "Disabled", Tone.OFF
    return ("Failing", Tone.BAD) if endpoint.fails_since is not None else ("Enabled", Tone.GOOD)


def result(attempt: WebhookAttempt | None) -> str | None:
    """Return `returned 204`, or why there was no answer."""
    if attempt is None:
        return None
    return attempt.error or f"returned {attempt.status}"


def _events(endpoint: WebhookEndpoint) -> tuple[str, ...]:
    """Return `batch.*` for all events of batches."""
    wanted = set(endpoint.event_types)
    shown = list[str]()
    for kind in dict.fromkeys(event.partition(".")[0] for event in endpoint.event_types):
        group = {event for event in EventType if event.startswith(f"{kind}.")}
        shown += [f"{kind}.*"] if group <= wanted else sorted(group & wanted)
    return tuple(shown)


WEBHOOKS: Listing[WebhookEndpoint] = Listing(
    columns=(
        Column(title="ID", show=lambda row: row.id, for_commands=True, is_code=True),
        Column(title="Name", show=lambda row: row.name, wraps=True),
        Column(title="URL", show=lambda row: row.url, rank=2, wraps=True),
        Column(title="State", show=lambda row: state(row)[0], tone=lambda row: state(row)[1]),
        Column(title="Last attempt", show=lambda row: None if row.last is None else row.last.at, rank=4, is_day=True),
        Column(title="Result", show=lambda row: row.disabled_why or result(row.last), rank=3, wraps=True),
        Column(title="Events", show=_events, rank=5, wraps=True),
    ),
    empty="No webhook endpoints yet.",
    is_over=lambda row: bool(row.disabled_why),
)
