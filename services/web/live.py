"""Pages that stay up to date while somebody looks: a stream of events with what has changed, as the scripts of the pages read it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
from litestar.response import Stream

from shared import errors

#: What a page shows, by the paths that its elements name.
Values = dict[str, object]
Read = Callable[[], Awaitable[Values]]

#: Followed at once, by everybody; each asks for its values every two seconds.
MOST_FOLLOWED = 500
MOST_OF_ONE = 6
_EVERY_SECONDS = 2.0
#: Proxies and browsers forget a silent connection; the scripts do after 45 s.
_SILENT_SECONDS = 15.0
#: Then the browser comes again: with the session of then, at whichever replica there is.
_LONGEST_SECONDS = 600.0


class Followers:
    """How many follow, and whose."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}

    @asynccontextmanager
    async def one_more(self, who: str) -> AsyncIterator[None]:
        """Raises Overloaded."""
        if sum(self._of.values()) >= MOST_FOLLOWED or self._of.get(who, 0) >= MOST_OF_ONE:
            raise errors.Overloaded("too many pages are followed at once", hint="close some of them", retry_after_seconds=30)
        self._of[who] = self._of.get(who, 0) + 1
        try:
            yield
        finally:
            self._of[who] -= 1
            if not self._of[who]:
                del self._of[who]


def answer(followers: Followers, who: str, read: Read) -> Stream:
    """The event stream of one page. ``read`` is asked again and again; what it raises is told and ends nothing but that turn."""
    return Stream(_events(followers, who, read), media_type="text/event-stream")


async def _events(followers: Followers, who: str, read: Read) -> AsyncGenerator[bytes]:
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + _LONGEST_SECONDS
    async with followers.one_more(who):
        shown: Values = {}
        said_at = 0.0
        while loop.time() < ends_at:
            try:
                values = await read()
            except errors.PeerError:
                values = shown | {"connection": "stale"}
            changed = {path: value for path, value in values.items() if path not in shown or shown[path] != value}
            if changed or loop.time() - said_at > _SILENT_SECONDS:
                yield b"data: " + msgspec.json.encode(changed) + b"\n\n"
                said_at = loop.time()
            shown = values
            await asyncio.sleep(_EVERY_SECONDS)
