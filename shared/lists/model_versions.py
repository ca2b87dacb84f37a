"""The list of versions of models."""

from shared.amounts import show_bytes
from shared.api.models import ModelVersion, VersionState
from shared.lists.columns import Column, Listing, Tone
from shared.models.version_names import STABLE

_TONES = {
    VersionState.READY: Tone.GOOD,
    VersionState.CHECKING: Tone.WARN,
    VersionState.REFUSED: Tone.BAD,
    VersionState.REVOKED: Tone.BAD,
    VersionState.RETIRED: Tone.OFF,
}


def state(version: ModelVersion) -> str:
    return "deleted" if version.is_deleted and version.state is not VersionState.REVOKED else version.state


def channel_name(model: str, channel: str) -> str:
    """Return the shortest name of a channel."""
    return model if channel == STABLE else f"{model}@{channel}"


def channels(version: ModelVersion) -> tuple[str, ...]:
    """Return the channels that serve it, or will once it is loaded."""
    return *version.channels, *(f"{channel} (loading)" for channel in version.next_of)


VERSIONS: Listing[ModelVersion] = Listing(
    columns=(
        Column(title="Version", show=lambda row: row.name, wraps=True),
        Column(title="State", show=state, tone=lambda row: Tone.OFF if row.is_deleted else _TONES[row.state]),
        Column(title="Channels", show=lambda row: channels(row) or None, wraps=True),
        Column(title="Size", show=lambda row: show_bytes(row.size), rank=2),
        Column(title="Quantization", show=lambda row: row.facts.quantization or None, rank=4),
        Column(title="License", show=lambda row: row.license or None, rank=5, wraps=True),
        Column(title="Pushed", show=lambda row: row.created_at, rank=3, is_day=True),
        Column(title="SHA-256", show=lambda row: row.digest.removeprefix("sha256:")[:12], rank=6, is_code=True),
        Column(title="Signed by", show=lambda row: ", ".join(key[:12] or "?" for key in row.signed_by) or None, rank=6, is_code=True),
        Column(title="Source", show=lambda row: row.source or None, rank=7, wraps=True, only_wide=True),
        Column(title="Reason", show=lambda row: row.reason or None, wraps=True, below=True),
    ),
    empty="No versions. Push one: aicli models push FILE NAME",
    is_over=lambda row: row.is_deleted or row.state in {VersionState.RETIRED, VersionState.REVOKED, VersionState.REFUSED},
)
