"""The list of open invitations to the mesh."""

from shared.api.organizations import ColleagueInvitation
from shared.lists.columns import Column, Listing

INVITATIONS: Listing[ColleagueInvitation] = Listing(
    columns=(
        # Enough for `revoke`.
        Column(title="ID", show=lambda row: row.id[:8], for_commands=True),
        Column(title="Email", show=lambda row: row.email, wraps=True),
        Column(title="Role", show=lambda row: row.role, rank=2),
        Column(title="Organization", show=lambda row: row.organisation_name or None, rank=3, wraps=True),
        Column(title="Invited by", show=lambda row: row.invited_by, rank=5, wraps=True),
        Column(title="Expires", show=lambda row: row.expires_at, rank=4, is_day=True),
        Column(title="Full ID", show=lambda row: row.id, only_wide=True),
    ),
    empty="No pending invitations.",
)
