"""Stream the values that changed to pages that are open, as live.js reads them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress

import msgspec

from services.web.http.event_response import EventResponse
from shared import errors
from shared.timing.concurrency_limit import ConcurrencyLimit

#: The values of a page, by the paths in its `data-live` attributes.
Values = dict[str, object]
Read = Callable[[], Awaitable[Values]]

#: Live pages at once, in total and per user; each reads its values every two seconds.
MAX_FOLLOWED = 500
MAX_OF_ONE = 6
_EVERY_SECONDS = 2.0
#: Proxies and browsers close idle connections; live.js reconnects after 45 s of silence.
_SILENT_SECONDS = 15.0
#: Then the browser reconnects, with its current session and to any replica.
_MAX_SECONDS = 600.0


def follower_limit() -> ConcurrencyLimit:
    """Return the limiter for live pages."""
    return ConcurrencyLimit(MAX_FOLLOWED, MAX_OF_ONE)


def refusal() -> errors.Overloaded:
    return errors.Overloaded("you have too many live pages open", hint="close some of them", retry_after_seconds=30)


def answer(followers: ConcurrencyLimit, follower: str, read: Read) -> EventResponse:
    """Return the event stream of one page, which calls ``read`` repeatedly.

    If a service is down, the page is marked as stale. Any other error, such as an expired session, ends the stream; the browser then
    reconnects and gets the error.
    """
    return EventResponse(lambda: aclosing(_events(followers, follower, read)))


async def _events(followers: ConcurrencyLimit, follower: str, read: Read) -> AsyncGenerator[bytes]:
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + _MAX_SECONDS
    with suppress(errors.AimeshError), followers.one_more(follower, refusal()):
        shown: Values = {}
        sent_at = 0.0
        while loop.time() < ends_at:
            try:
                values = await read()
            except errors.PeerError:
                values = shown | {"connection": "stale"}
            changed = {path: value for path, value in values.items() if path not in shown or shown[path] != value}
            if changed or loop.time() - sent_at > _SILENT_SECONDS:
                yield b"data: " + msgspec.json.encode(changed) + b"\n\n"
                sent_at = loop.time()
            shown = values
            await asyncio.sleep(_EVERY_SECONDS)
