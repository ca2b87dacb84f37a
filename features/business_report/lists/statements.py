"""The list of node owners' monthly statements."""

from collections.abc import Sequence

from features.business_report.contract import OwnerStatement
from shared.amounts import grouped
from shared.lists.columns import Column, Listing, percent


def list_statements(rows: Sequence[OwnerStatement]) -> Listing[OwnerStatement]:
    """Return the list of these rows: shares only if they are known."""
    share: Column[OwnerStatement] = Column(title="Share", show=_share, rank=3, is_number=True)
    return Listing(
        columns=(
            Column(title="Owner", show=lambda row: row.owner or "No owner or node"),
            Column(title="Requests", show=lambda row: row.requests, is_number=True),
            Column(title="Tokens in", show=lambda row: row.prompt_tokens, rank=5, is_number=True),
            Column(title="Tokens out", show=lambda row: row.completion_tokens, rank=4, is_number=True),
            Column(title="Earned", show=lambda row: grouped(row.earned_micro), is_number=True),
            *([share] if any(row.earned_share is not None for row in rows) else []),
            Column(title="kWh", show=lambda row: None if row.kwh is None else f"{row.kwh:,.3f}", is_number=True),
            Column(
                title="Energy cost", show=lambda row: None if row.energy_cost is None else f"{row.energy_cost:,.3f}", rank=2, is_number=True
            ),
            Column(title="Measured by", show=lambda row: row.measured_by, rank=6),
        ),
        empty="No requests and no energy in this month.",
    )


def _share(row: OwnerStatement) -> str | None:
    return None if row.earned_share is None else percent(round(100 * row.earned_share, 1))
