"""Sends a request to a server that a tenant named. Connects only to addresses that ``ReceiverRules`` allow, checked at each attempt."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpcore

from features.webhooks.rules import receiver_rules
from features.webhooks.rules.receiver_rules import Receiver, ReceiverRules

#: For everything: the name, TLS, the request, and what is read of the answer.
TOTAL_SECONDS = 15.0
#: For a name, when an endpoint is created; and for each of its addresses.
_CHECK_SECONDS, _CONNECT_SECONDS = 5.0, 5.0
#: So that a receiver that answers briefly can close the connection in order. Nothing of it is kept.
MAX_ANSWER_BYTES = 1024
#: Threads that wait for DNS. A slow server for a tenant's name takes only these.
RESOLVERS = 16

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Refused(OSError):
    """A receiver at this address gets nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How an attempt ended."""

    #: None: there was no HTTP answer.
    status: int | None
    #: Why there was none, in words for the endpoint's owner.
    error: str = ""
    retry_after: str = ""
    timed_out: bool = False


class ReceiverClient:
    """Each request has its own connection. There are no redirects, no proxies, and no compression."""

    def __init__(self, rules: ReceiverRules, resolve: Resolve | None = None, trusted: ssl.SSLContext | None = None) -> None:
        self._rules = rules
        self._resolve = resolve or _Resolver()
        self._trusted = trusted or ssl.create_default_context()

    async def check(self, url: str) -> None:
        """Raises BadRequest for a URL that may not get webhooks now."""
        receiver = receiver_rules.read_url(url)
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._find(receiver)
        except (OSError, UnicodeError) as error:
            raise receiver_rules.wrong_url(f"can't get webhooks: {_reason(error)}") from error

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post once. Every failure of the receiver is an answer."""
        try:
            receiver = receiver_rules.read_url(url)
            async with asyncio.timeout(TOTAL_SECONDS):
                return await self._post(receiver, body, headers)
        except (OSError, UnicodeError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            return Answer(None, _reason(error), timed_out=isinstance(error, TimeoutError | httpcore.TimeoutException))
        except AttributeError as error:
            # uvloop has no socket for a connection that is reset at once, as ``HttpTransport`` says.
            if error.name != "getpeername":
                raise
            return Answer(None, "the connection was reset")

    async def _post(self, receiver: Receiver, body: bytes, headers: Mapping[str, str]) -> Answer:
        url = httpcore.URL(scheme=receiver.scheme, host=receiver.host, port=receiver.port, target=receiver.target)
        sent = [("host", receiver.authority), ("connection", "close"), ("user-agent", "aimesh"), *headers.items()]
        backend = _CheckedBackend(lambda: self._find(receiver))
        async with (
            httpcore.AsyncConnectionPool(ssl_context=self._trusted, network_backend=backend, max_keepalive_connections=0) as pool,
            pool.stream("POST", url, headers=sent, content=body) as response,
        ):
            read = 0
            async for piece in response.aiter_stream():
                read += len(piece)
                if read >= MAX_ANSWER_BYTES:
                    break
            given = {name.lower(): value for name, value in response.headers}
            return Answer(response.status, retry_after=given.get(b"retry-after", b"").decode("latin-1"))

    async def _find(self, receiver: Receiver) -> Sequence[str]:
        """Return the addresses of the host. Raises Refused if any of them is not allowed, and OSError if there is none."""
        found = await self._resolve(receiver.host, receiver.port)
        for address in found:
            if mistake := self._rules.find_mistake(receiver, address):
                raise Refused(mistake)
        if not found:
            raise OSError(f"{receiver.host} has no address")
        return found


class _CheckedBackend(httpcore.AnyIOBackend):
    """Connects to the addresses that were checked. TLS and ``Host`` still have the name."""

    def __init__(self, find: Callable[[], Awaitable[Sequence[str]]]) -> None:
        self._find = find

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError("no address")
        for address in await self._find():
            try:
                return await super().connect_tcp(address, port, _CONNECT_SECONDS, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(self, *_args: object, **_more: object) -> httpcore.AsyncNetworkStream:
        raise Refused("a file is no receiver")


class _Resolver:
    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="webhook-dns")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        found = await asyncio.get_running_loop().run_in_executor(self._threads, _resolve, host, port)
        return list(dict.fromkeys(found))


def _resolve(host: str, port: int) -> list[str]:
    return [str(place[0]) for *_, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _reason(error: Exception) -> str:
    match error:
        case Refused():
            return str(error)
        case TimeoutError() | httpcore.TimeoutException():
            return "no answer in time"
        case socket.gaierror() | UnicodeError():
            return "its name can't be resolved"
        case httpcore.ConnectError():
            return f"no connection: {_shown(error)}"
        case httpcore.ProtocolError():
            return "its answer is no HTTP"
    return _shown(error) or type(error).__name__


def _shown(error: BaseException) -> str:
    """Return a short cause, such as of TLS. It may quote a certificate, so it is cut and has no control characters."""
    while error.__cause__ is not None and str(error.__cause__):
        error = error.__cause__
    return "".join(filter(str.isprintable, str(error)))[:200]
