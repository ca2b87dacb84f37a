"""Listen on one PostgreSQL connection and forward changes of users and keys to all watchers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator

from services.auth.store import AccountTables
from shared.api.auth import Change
from shared.node import lifecycle

#: Changes that a slow watcher has not read. Beyond this, one change replaces them: forget everything.
_UNREAD = 100
_PRUNE_EVERY_SECONDS = 3600


class ChangeStream:
    """``run`` is the task that listens; ``watch`` may be called any number of times meanwhile."""

    def __init__(self, store: AccountTables, ending: asyncio.Event) -> None:
        self._store = store
        #: Set at shutdown: a watch never ends and would use up the whole grace period of the drain.
        self._ending = ending
        self._watchers: set[asyncio.Queue[Change]] = set()
        #: Called with each change, before the watchers.
        self.on_change: Callable[[Change], None] = lambda change: None

    async def run(self) -> None:
        """Run until canceled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._store.follow_changes(self._notify))
            tasks.create_task(lifecycle.every(_PRUNE_EVERY_SECONDS, self._store.prune_changes, first=0))

    async def watch(self, since: int) -> AsyncGenerator[Change, None]:
        """Yield what was missed since ``since``, then every change. After the first item nothing is missed any more.

        Ends when the service shuts down. Raises Unavailable if PostgreSQL cannot say what was missed.
        """
        # Registered before asking: a change in between arrives twice rather than never.
        with self._registered() as unread:
            for change in await self._store.missed_changes(since):
                yield change
            while (next_change := await self._next(unread)) is not None:
                yield next_change

    def forget_everyone(self) -> None:
        """Let the watchers forget what they know of everyone."""
        self._notify(Change(0))

    async def _next(self, unread: asyncio.Queue[Change]) -> Change | None:
        async with lifecycle.background() as tasks:
            arrival, ending = tasks.create_task(unread.get()), tasks.create_task(self._ending.wait())
            await asyncio.wait({arrival, ending}, return_when=asyncio.FIRST_COMPLETED)
            return arrival.result() if arrival.done() else None

    def _notify(self, change: Change) -> None:
        self.on_change(change)
        for unread in self._watchers:
            if unread.full():
                while not unread.empty():
                    unread.get_nowait()
                unread.put_nowait(Change(change.sequence))
            else:
                unread.put_nowait(change)

    @contextlib.contextmanager
    def _registered(self) -> Iterator[asyncio.Queue[Change]]:
        unread: asyncio.Queue[Change] = asyncio.Queue(_UNREAD)
        self._watchers.add(unread)
        try:
            yield unread
        finally:
            self._watchers.discard(unread)
