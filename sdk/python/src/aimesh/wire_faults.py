"""What comes from httpx, and what goes wrong there, in this package's words: the same for both wires.  Pure."""

import httpx

from aimesh.actions import AnswerHead, WireLost

#: A host that is there answers a knock within two round trips, also when the first one was lost.
CONNECT_SECONDS = 5.0
#: What httpx raises while it sends and reads.
FAULTS = (httpx.RequestError, httpx.StreamError)
#: Nothing was sent yet.
_BEFORE = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    httpx.ProxyError,
)


def lost(error: Exception) -> WireLost:
    return WireLost(_why(error), may_have_arrived=not isinstance(error, _BEFORE))


def too_slow() -> WireLost:
    return WireLost("the time is over")


def head(response: httpx.Response) -> AnswerHead:
    return AnswerHead(response.status_code, {name.lower(): value for name, value in response.headers.items()})


def _why(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "it took too long to connect" if isinstance(error, _BEFORE) else "nothing came for too long"
    return f"{type(error).__name__}: {error}"[:500]
