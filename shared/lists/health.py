"""The words of the mesh's health and of a component's."""

from shared.lists.columns import Tone

#: Status -> word and tone, the worst first.
STATUSES = {"down": ("Down", Tone.BAD), "degraded": ("Degraded", Tone.WARN), "healthy": ("OK", Tone.GOOD)}


def status(of: str) -> tuple[str, Tone]:
    """Return the word and tone of a status; a newer service may have others."""
    return STATUSES.get(of, (of, Tone.WARN))
