"""Record when each key was last used, to the minute. Written in batches; a crash loses a few seconds."""

import asyncio
import contextlib

from services.auth.store import AccountTables
from shared import errors
from shared.types import KeyId

_WRITE_EVERY_SECONDS = 5
#: Keys per interval; further ones are recorded at their next use.
_MOST_NOTED = 10_000


class KeyLastUsed:
    """``note`` never blocks; ``run`` is the task that writes."""

    def __init__(self, store: AccountTables) -> None:
        self._store = store
        self._noted: set[KeyId] = set()

    def note(self, key_id: KeyId) -> None:
        if len(self._noted) < _MOST_NOTED:
            self._noted.add(key_id)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_WRITE_EVERY_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Write now. What cannot be written is dropped."""
        noted, self._noted = self._noted, set()
        if noted:
            with contextlib.suppress(errors.Unavailable):
                await self._store.touch_keys(sorted(noted))
