"""Pages that stay up to date while somebody looks: a stream of events with what has changed, as the scripts of the pages read it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress

import msgspec

from services.web.crowd import Crowd
from services.web.events import Events
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


def crowd() -> Crowd:
    """Who follows at once."""
    return Crowd(MOST_FOLLOWED, MOST_OF_ONE, "too many pages are followed at once", "close some of them", 30)


def answer(followers: Crowd, who: str, read: Read) -> Events:
    """The event stream of one page. ``read`` is asked again and again. A service that is away makes the page stale; any other error, as
    that of a session that is over, ends the stream, and the browser that comes again is told why."""
    return Events(lambda: aclosing(_events(followers, who, read)))


async def _events(followers: Crowd, who: str, read: Read) -> AsyncGenerator[bytes]:
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + _LONGEST_SECONDS
    with suppress(errors.AimeshError), followers.one_more(who):
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
