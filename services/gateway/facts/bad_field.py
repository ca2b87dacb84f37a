"""Says which field of a request is wrong. Pure."""

from shared import errors


class BadField(errors.BadRequest):
    """An invalid field; carries its name for the ``param`` of an OpenAI error."""

    def __init__(self, field: str, must: str, *, known: str | None = None) -> None:
        """``known``: what may be logged of the path, if the rest are names that the caller chose."""
        super().__init__(f"{field} {must}", field=field)
        self.known = field if known is None else known
