"""Ends what runs for callers who may run nothing any more: their key was revoked or deleted, or their account closed."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from shared import errors
from shared.api.auth import Change, IdentifyOwner, Principal
from shared.telemetry import logs
from shared.types import UserId

#: Auth is asked about so many callers at once.
_AT_ONCE = 20
#: If auth can't be asked, it is asked again so soon.
_AGAIN_SECONDS = 1.0

_log = logs.get(part="revoked-callers")


class RunTable(Protocol):
    def callers(self, user: UserId | None) -> Collection[IdentifyOwner]:
        """Return for whom requests run: one user's keys and logins, and whom the keys name; or everyone."""
        ...

    def end(self, caller: IdentifyOwner, why: errors.AimeshError) -> int:
        """End the caller's requests with this error, and return how many."""
        ...


class RevokedCallers:
    """``run`` is a task. Auth announces each change of a user or key, within a moment."""

    def __init__(self, runs: RunTable, ask_auth: Callable[[IdentifyOwner], Awaitable[Principal]]) -> None:
        """``ask_auth`` must not answer from before the change."""
        self._runs = runs
        self._ask_auth = ask_auth
        #: Whose rights may have changed; None for anyone's.
        self._changed: set[UserId | None] = set()
        self._may_check = asyncio.Event()

    def note(self, change: Change) -> None:
        self._changed.add(change.user_id)
        self._may_check.set()

    async def run(self) -> None:
        """Run until canceled."""
        while True:
            await self._may_check.wait()
            self._may_check.clear()
            changed, self._changed = self._changed, set()
            asked = list({caller for user in changed for caller in self._runs.callers(user)})
            left = [caller for first in range(0, len(asked), _AT_ONCE) for caller in await self._check(asked[first : first + _AT_ONCE])]
            if left:
                self._changed |= {caller.user_id for caller in left}
                self._may_check.set()
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _check(self, callers: Collection[IdentifyOwner]) -> list[IdentifyOwner]:
        """Return those about whom auth couldn't be asked."""
        checks = await asyncio.gather(*map(self._is_checked, callers))
        return [caller for caller, is_checked in zip(callers, checks, strict=True) if not is_checked]

    async def _is_checked(self, caller: IdentifyOwner) -> bool:
        try:
            await self._ask_auth(caller)
        except errors.NotAuthenticated as error:
            ended = self._runs.end(caller, error)
            _log.info("requests ended with their caller's rights", key_id=caller.key_id, user_id=caller.user_id, requests=ended)
        except errors.PeerError:
            return False
        return True
