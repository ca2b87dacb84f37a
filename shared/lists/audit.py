"""The list of audited actions."""

from shared.api.audit import AuditRow, Result
from shared.lists.columns import Column, Listing, Tone

RESULTS = {Result.DONE: ("Done", Tone.GOOD), Result.REFUSED: ("Refused", Tone.WARN), Result.FAILED: ("Failed", Tone.BAD)}

AUDIT: Listing[AuditRow] = Listing(
    columns=(
        Column(title="Time", show=lambda row: row.act.at),
        Column(title="Actor", show=lambda row: row.actor_name or (None if row.act.actor is None else str(row.act.actor))),
        Column(title="Action", show=lambda row: row.act.action),
        Column(title="Result", show=lambda row: RESULTS[row.act.result][0], tone=lambda row: RESULTS[row.act.result][1]),
        Column(title="Times", show=lambda row: row.act.times, rank=5, is_number=True),
        Column(title="Target", show=lambda row: row.act.target or None, rank=2),
        Column(title="Address", show=lambda row: "Erased" if row.erased else row.act.address or None, rank=4),
        Column(
            title="Details",
            show=lambda row: tuple(f"{name}: {text}" for name, text in row.act.details.items()),
            rank=3,
            wraps=True,
            below=True,
        ),
    ),
    empty="No matching entries.",
)
