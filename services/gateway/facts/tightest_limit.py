"""The limit that leaves a caller the least, for the headers of an answer. Pure."""

import msgspec

from shared.api.gateway import LimitState


class TightestLimit(msgspec.Struct, frozen=True):
    """The limits with the least left, for the response headers; None if there is none."""

    requests: LimitState | None = None
    tokens: LimitState | None = None
