"""The list of stored files."""

from features.files.contract import FileFacts
from shared.amounts import show_bytes
from shared.lists.columns import Column, Listing

FILES: Listing[FileFacts] = Listing(
    columns=(
        Column(title="File", show=lambda file: file.name, wraps=True),
        Column(title="ID", show=lambda file: file.id, is_code=True),
        Column(title="Purpose", show=lambda file: file.purpose, rank=3),
        Column(title="Size", show=lambda file: show_bytes(file.size), rank=2),
        Column(title="Uploaded", show=lambda file: file.created_at, rank=4, is_day=True),
        Column(title="Expires", show=lambda file: file.expires_at, rank=5, is_day=True),
    ),
    empty="No files. Upload one: aicli files upload FILE",
)
