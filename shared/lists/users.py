"""The list of users."""

from shared import plan_names
from shared.api.auth import User
from shared.lists.columns import Column, Listing, Tone

#: Whether an account is active -> its word and tone.
STATES = {True: ("Active", Tone.GOOD), False: ("Disabled", Tone.OFF)}

USERS: Listing[User] = Listing(
    columns=(
        Column(title="Username", show=lambda row: row.username),
        Column(title="Email", show=lambda row: row.email, rank=2, wraps=True),
        Column(title="Role", show=lambda row: row.role, rank=3),
        Column(title="Tier", show=lambda row: plan_names.name_of(row.tier), rank=4),
        Column(title="State", show=lambda row: STATES[row.is_active][0], tone=lambda row: STATES[row.is_active][1]),
        Column(title="Since", show=lambda row: row.created_at, rank=5, is_day=True),
        Column(title="ID", show=lambda row: str(row.id), only_wide=True),
    ),
    empty="No matching users.",
    is_over=lambda row: not row.is_active,
)
