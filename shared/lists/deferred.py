"""The list of items of background work that failed."""

from shared.api.deferral import DeferredItem
from shared.lists.columns import Column, Listing

DEFERRED: Listing[DeferredItem] = Listing(
    columns=(
        Column(title="Kind", show=lambda row: row.kind, for_commands=True),
        Column(title="ID", show=lambda row: row.id, for_commands=True, wraps=True),
        Column(title="Service", show=lambda row: row.service, rank=5),
        Column(title="Tries", show=lambda row: row.tries, rank=3),
        Column(title="Since", show=lambda row: row.since, rank=4),
        Column(title="Next try", show=lambda row: row.next_at or "rests", rank=2),
        Column(title="Error", show=lambda row: row.error, wraps=True),
    ),
    empty="Nothing has failed.",
)
