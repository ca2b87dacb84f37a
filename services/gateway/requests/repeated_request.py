"""What a call says about an earlier one."""

from dataclasses import dataclass

from shared.api.gateway import Rest


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedRequest:
    """Says which earlier request a call repeats, if any."""

    key: str | None = None
    #: The part of the answer that the caller has lost.
    rest: Rest | None = None
    #: See ``IdempotentRequest.together``.
    together: bytes = b""


NO_REPEAT = RepeatedRequest()
