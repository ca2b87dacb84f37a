"""The list of join tickets."""

from shared.api.membership import TicketRow, TicketState
from shared.lists.columns import Column, Listing, Tone, of_most, pairs
from shared.lists.nodes import NO_OWNER

STATES = {
    TicketState.GOOD: ("Valid", Tone.GOOD),
    TicketState.USED_UP: ("Used up", Tone.OFF),
    TicketState.EXPIRED: ("Expired", Tone.OFF),
    TicketState.REVOKED: ("Revoked", Tone.OFF),
}

TICKETS: Listing[TicketRow] = Listing(
    columns=(
        Column(title="Ticket", show=lambda row: row.id, is_code=True),
        Column(title="State", show=lambda row: STATES[row.state][0], tone=lambda row: STATES[row.state][1]),
        Column(title="Role", show=lambda row: row.role, rank=2),
        Column(title="Used", show=lambda row: of_most(row.used, row.uses), rank=4, is_number=True),
        Column(
            title="Active",
            show=lambda row: None if row.active_most is None else of_most(row.active, row.active_most),
            rank=4,
            is_number=True,
        ),
        Column(title="Expires", show=lambda row: row.expires_at, rank=3),
        Column(title="Owner", show=lambda row: row.owner or NO_OWNER, rank=5, wraps=True),
        Column(title="Labels", show=lambda row: pairs(row.labels), rank=6, wraps=True),
        Column(title="Approval", show=lambda row: "Required" if row.needs_approval else "Not required", rank=7),
    ),
    empty="No tickets yet.",
    is_over=lambda row: row.state is not TicketState.GOOD,
)
