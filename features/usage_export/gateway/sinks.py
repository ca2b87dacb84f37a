"""What the export needs of a system that gets usage, and the sink for CloudEvents over HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

import httpx
import msgspec

from features.usage_export.rules.usage_events import DaySums, UsageEvent, UsageSum
from shared.timing import retry_after_header
from shared.transports.http_transport import HttpTransport

_CONNECT_SECONDS, _SECONDS = 5.0, 10.0
#: The statuses of a server that may have stored the events: 408 and 409, and all from 500.
_DOUBTFUL: Final = frozenset({408, 409})


class NotSent(Exception):
    """A sink didn't confirm events. The message is shown to administrators and contains no secrets. Caught by ``SinkExport``."""

    def __init__(self, message: str, *, may_be_stored: bool, retry_after_seconds: float = 0.0) -> None:
        super().__init__(message)
        #: False only if the sink certainly stored none of them.
        self.may_be_stored = may_be_stored
        self.retry_after_seconds = retry_after_seconds


class Sink(Protocol):
    #: The key of its cursor.
    name: str
    #: For how long it ignores an event whose id it has stored.
    deduplicates: timedelta
    #: How many rows become the events of one ``send``.
    batch: int

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Open it while this gateway sends to it. Raises NotSent."""
        ...

    async def send(self, events: Sequence[UsageEvent]) -> None:
        """Store the events in order within 15 s. Raises NotSent."""
        ...

    async def find_stored(self, events: Sequence[UsageEvent]) -> Collection[UUID] | None:
        """Return which of them it has; None if it can't be asked. Raises NotSent."""
        ...

    async def find_difference(self, expected: DaySums, since: date) -> UsageSum | None:
        """Compare what it has since a day with what it must have; None if it can't be asked. Raises NotSent."""
        ...


class CloudEventsSink:
    """Posts batches to an HTTP endpoint, such as OpenMeter's, that can't be asked what it has."""

    name = "cloudevents"
    #: OpenMeter's window.
    deduplicates = timedelta(days=32)
    #: About 200 KiB.
    batch = 500

    def __init__(self, url: str, token_file: Path | None) -> None:
        self._url = url
        self._token_file = token_file

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        timeout = httpx.Timeout(_SECONDS, connect=_CONNECT_SECONDS)
        async with httpx.AsyncClient(transport=HttpTransport(trust_env=False), timeout=timeout) as self._client:
            yield

    async def send(self, events: Sequence[UsageEvent]) -> None:
        body = msgspec.json.encode(events)
        headers = {"content-type": "application/cloudevents-batch+json; charset=utf-8"}
        try:
            if self._token_file is not None:
                headers["authorization"] = f"Bearer {(await asyncio.to_thread(self._token_file.read_text)).strip()}"
            async with asyncio.timeout(_SECONDS), self._client.stream("POST", self._url, content=body, headers=headers) as response:
                status, retry_after = response.status_code, response.headers.get("retry-after", "")
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise NotSent(f"no connection: {type(error).__name__}", may_be_stored=False) from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise NotSent(f"no answer: {type(error).__name__}", may_be_stored=True) from error
        except (OSError, ValueError) as error:
            raise NotSent(f"USAGE_EXPORT_TOKEN_FILE can't be used: {type(error).__name__}", may_be_stored=False) from error
        if not 200 <= status < 300:
            seconds = retry_after_header.read(retry_after, time.time()) or 0.0
            doubtful = status >= 500 or status in _DOUBTFUL
            raise NotSent(f"returned {status}", may_be_stored=doubtful, retry_after_seconds=seconds)

    async def find_stored(self, events: Sequence[UsageEvent]) -> Collection[UUID] | None:
        return None

    async def find_difference(self, expected: DaySums, since: date) -> UsageSum | None:
        return None
