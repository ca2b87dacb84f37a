"""The list of the systems that get the usage."""

from features.usage_export.contract import UsageSink
from shared import amounts
from shared.lists.columns import Column, Listing, Tone

SINKS: Listing[UsageSink] = Listing(
    columns=(
        Column(title="Sink", show=lambda row: row.name),
        Column(
            title="State",
            show=lambda row: row.error or (f"{row.waiting:,} waiting" if row.lag_seconds else "Up to date"),
            tone=lambda row: Tone.BAD if row.error else Tone.WARN if row.lag_seconds else Tone.GOOD,
        ),
        Column(title="Sent", show=lambda row: row.sent_at),
        Column(title="Compared", show=lambda row: row.compared_at),
        Column(title="Tokens differ", show=lambda row: row.difference_tokens, is_number=True),
        Column(title="Credits differ", show=lambda row: amounts.grouped(row.difference_micro), is_number=True),
        Column(title="More tokens since a restore", show=lambda row: row.excess.tokens if row.excess else None, is_number=True),
        Column(title="More credits", show=lambda row: amounts.grouped(row.excess.cost_micro) if row.excess else None, is_number=True),
    ),
    empty="Usage isn’t exported.",
)
