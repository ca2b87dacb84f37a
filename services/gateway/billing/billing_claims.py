"""Records in each reservation which worker runs its request, so that only that worker can bill it after this gateway died.

The worker starts meanwhile: a gateway that dies in the milliseconds before a claim is recorded bills nothing for it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from services.gateway.billing.reservations import WorkerClaim
from shared import errors
from shared.telemetry import logs
from shared.types import RequestId

#: Claims in one statement.
BATCH = 500
#: Between two statements: a busy gateway then records many claims with one commit, and a request that ends sooner needs none.
PAUSE_SECONDS = 0.02
_RETRY_SECONDS = 0.25

#: Records at most one claim of each request, and returns the requests whose claim is recorded. Raises Unavailable.
RecordClaims = Callable[[Sequence[WorkerClaim]], Awaitable[set[RequestId]]]

_log = logs.get(part="worker_claims")


class WorkerClaims:
    """Run ``write``. Bounded by the requests that are open, each of which is followed by ``ended``."""

    def __init__(self, record: RecordClaims) -> None:
        self._record = record
        #: In the order of the claims of each request.
        self._pending: dict[RequestId, list[WorkerClaim]] = {}
        self._arrived = asyncio.Event()
        self._is_well = True

    def add(self, claim: WorkerClaim) -> None:
        """Never waits."""
        self._pending.setdefault(claim.request_id, []).append(claim)
        self._arrived.set()

    def ended(self, request_id: RequestId) -> None:
        """Its row settles the reservation, whatever ran it. Safe to call twice."""
        self._pending.pop(request_id, None)

    async def write(self) -> None:
        """Ends by cancellation."""
        while True:
            if not self._pending:
                self._arrived.clear()
                await self._arrived.wait()
            await asyncio.sleep(PAUSE_SECONDS)
            claims = [pending[0] for pending, _ in zip(self._pending.values(), range(BATCH), strict=False)]
            if claims and not await self._recorded(claims):
                await asyncio.sleep(_RETRY_SECONDS)

    async def _recorded(self, claims: Sequence[WorkerClaim]) -> bool:
        """Whether anything was recorded. A row that was locked is tried again while its request is open."""
        try:
            recorded = await self._record(claims)
        except errors.Unavailable as error:
            if self._is_well:
                _log.warning("claims of workers wait", reason=error.message, claims=len(self._pending))
            self._is_well = False
            return False
        self._is_well = True
        for claim in claims:
            pending = self._pending.get(claim.request_id)
            if claim.request_id not in recorded or pending is None:
                continue
            pending.remove(claim)
            if not pending:
                del self._pending[claim.request_id]
        return bool(recorded)
