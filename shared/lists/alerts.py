"""The lists of alerts and of silences. Alerts are a table in a terminal and cards on a page; they share words and tones."""

from shared.api.alerts import Silence
from shared.lists.columns import Column, Listing, Tone, pairs

STATES = {"firing": "Firing", "pending": "Pending", "over": "Resolved"}
_TONES = {"page": Tone.BAD, "critical": Tone.BAD, "warning": Tone.WARN}

SILENCES: Listing[Silence] = Listing(
    columns=(
        Column(title="Silence", show=lambda row: row.id, for_commands=True),
        Column(title="Alert", show=lambda row: row.name or "All alerts"),
        Column(title="Labels", show=lambda row: pairs(row.labels) or "All", rank=2, wraps=True),
        Column(title="Until", show=lambda row: row.until),
        Column(title="By", show=lambda row: row.by, rank=3, wraps=True),
        Column(title="Reason", show=lambda row: row.why or None, rank=4, wraps=True, below=True),
    ),
    empty="No silences.",
)


def tone(severity: str) -> Tone:
    """Return BAD for a severity that needs action within the hour."""
    return _TONES.get(severity, Tone.OFF)
