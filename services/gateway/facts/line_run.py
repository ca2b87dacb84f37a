"""The line of a job that the running task answers instead of a caller's request: what it may do, and how it ended."""

from contextvars import ContextVar
from dataclasses import dataclass
from uuid import UUID

from services.gateway.facts.request_record import RequestRow
from shared import errors
from shared.api.auth import Principal
from shared.types import RequestId


@dataclass(slots=True, eq=False, kw_only=True)
class LineRun:
    """Takes the row of the line's request, which is written together with the line's result."""

    job_id: UUID
    request_id: RequestId
    principal: Principal
    #: It runs beside callers' requests, at their price and within their limits.
    is_live: bool
    #: Of the model that its job names; it stays while the job runs. None: today's.
    price_id: int | None
    seed: int
    #: Of its prompt, those that the worker had read before.
    cached_tokens: int = 0
    #: These two: None until it has ended.
    row: RequestRow | None = None
    failure: errors.AimeshError | None = None

    # --- as ``UsageRecorder``

    def reserve(self) -> None: ...

    def release(self) -> None: ...

    def add(self, row: RequestRow) -> RequestRow:
        self.row = row
        return row

    async def wait_until_saved(self, added: RequestRow) -> None: ...


#: None for requests of callers.
current: ContextVar[LineRun | None] = ContextVar("line_run", default=None)


def of(request: RequestId) -> LineRun | None:
    """Return the line of a request; None for one of a caller, and for a check of a line's texts, which is a request of its own."""
    found = current.get()
    return found if found is not None and found.request_id == request else None
