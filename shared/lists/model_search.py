"""The list of models that people can find, and where they fit."""

from collections.abc import Iterator

from shared.api.inference import Fit
from shared.api.model_search import ROOM_GIGABYTES, FoundModel, MachineFit
from shared.lists import nodes
from shared.lists.columns import Column, Listing, Tone

_TONES = {Fit.YES: Tone.GOOD, Fit.PARTLY: Tone.WARN, Fit.NO: Tone.BAD, Fit.UNKNOWN: Tone.OFF}


def size_of(row: FoundModel) -> str | None:
    """Return the size of a download, which is an estimate as long as nobody has asked the hub."""
    unchecked = ", not checked" if row.model is not None and row.model.size is None else ""
    return f"{row.size / 10**9:.1f} GB{unchecked}" if row.size else None


def explain(row: FoundModel) -> Iterator[str]:
    """Say for each machine how the model fits, or why not."""
    for fit in row.fits:
        owner = "" if fit.accepts_models else ", but its owner doesn't accept models"
        yield f"{nodes.short(fit.worker)}…: {fit.fit}{owner}{f' ({fit.detail})' if fit.detail else ''}"


def _explain(fit: MachineFit) -> str:
    owner = "" if fit.accepts_models else "its owner doesn't accept models"
    return "; ".join(filter(None, (fit.detail, owner)))


def fitting(row: FoundModel) -> list[MachineFit]:
    """Return the machines that could load the model, the best first, and last those whose owners accept none."""
    return [fit for fit in row.fits if fit.fit in {Fit.YES, Fit.PARTLY}]


def _machines(row: FoundModel) -> str | tuple[str, ...] | None:
    if row.is_served:
        return "served"
    found = (f"{nodes.short(fit.worker)}{'' if fit.fit is Fit.YES else ' (partly)'}" for fit in fitting(row) if fit.accepts_models)
    return tuple(found) or None


FOUND: Listing[FoundModel] = Listing(
    columns=(
        Column(title="Model", show=lambda row: row.name),
        Column(title="Size", show=size_of, rank=2),
        Column(title="Quantization", show=lambda row: row.model.quantizations[0] if row.model else None, rank=5),
        Column(title="License", show=lambda row: (row.model and row.model.license) or None, rank=6),
        Column(title="Tools", show=lambda row: "yes" if row.model and row.model.tools else None, rank=4),
        Column(title="Fits on", show=_machines, rank=2, wraps=True),
        Column(
            title=f"Room at {'/'.join(map(str, ROOM_GIGABYTES))} GB", show=lambda row: "/".join(map(str, row.room)) or None, only_wide=True
        ),
        Column(title="Machines", show=lambda row: tuple(explain(row)), only_wide=True, wraps=True),
    ),
    empty="No models found.",
)
MACHINES: Listing[MachineFit] = Listing(
    columns=(
        Column(title="Machine", show=lambda fit: nodes.short(fit.worker), is_code=True),
        Column(title="Fits", show=lambda fit: fit.fit, tone=lambda fit: _TONES[fit.fit]),
        Column(title="How, or why not", show=_explain, wraps=True),
    ),
    empty="No machine is known.",
)
