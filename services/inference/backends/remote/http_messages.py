"""Parses the URL of an HTTP server, builds requests to it, and parses its responses.  Pure."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar
from urllib.parse import quote, urlsplit

import httptools

T = TypeVar("T")

_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"[a-z0-9-]+\Z")
#: RFC 9110, section 5.5, ASCII only: a line break would inject another header.
_VALUE = re.compile(r"[!-~]([\t -~]*[!-~])?\Z")
_VERSION = re.compile(r"/v\d+\Z")
_TARGET = re.compile(r"/[!-~]*\Z")
#: Allowed in a path besides letters and digits (RFC 3986, section 3.3); `%` stays, because the URL may be escaped already.
_PATH_MARKS = "/%:@!$&'()*+,;=~-._"


@dataclass(frozen=True, slots=True)
class ServerOrigin:
    """A server's address, and the prefix of all its paths."""

    #: An IPv6 address has no brackets here.
    host: str
    port: int
    is_tls: bool
    authority: str
    prefix: str


def origin(url: str) -> ServerOrigin:
    """Raises ValueError, whose message doesn't show the URL, because that may contain a password."""
    try:
        parts = urlsplit(url)
        given = parts.port
        host = (parts.hostname or "").encode("idna").decode("ascii") if ":" not in (parts.hostname or "") else str(parts.hostname)
    except ValueError as error:
        # Also UnicodeError, for an empty label or one of more than 63 letters.
        raise ValueError("the URL is not valid") from error
    if parts.scheme not in _DEFAULT_PORTS or not host or parts.username is not None or parts.password is not None:
        raise ValueError("the URL must be http:// or https:// with a host and no password")
    # The zone of a link-local address only means something on this machine.
    shown = f"[{host.partition('%')[0]}]" if ":" in host else host
    default = _DEFAULT_PORTS[parts.scheme]
    port = default if given is None else given
    if not _VALUE.match(shown):
        raise ValueError("the host has a character that is not allowed in a header")
    return ServerOrigin(
        host=host,
        port=port,
        is_tls=parts.scheme == "https",
        authority=shown if port == default else f"{shown}:{port}",
        prefix=quote(parts.path.rstrip("/"), safe=_PATH_MARKS),
    )


@dataclass(frozen=True, slots=True)
class JsonRequest(Generic[T]):
    """A request, and how its whole response is read."""

    #: As in `RequestWriter`.
    path: str
    body: bytes
    #: Raises BadStream or one of `event_stream.UNREADABLE`.
    read: Callable[[bytes], T]
    #: The most bytes of a plausible response.
    most: int


class RequestWriter:
    """Builds requests to one origin with the same headers. Its repr hides them: one has the key.

    Paths are below the URL. With a leading slash they are beside the API's version: `/health` if the URL ends in `/v1`."""

    def __init__(self, to: ServerOrigin, headers: Mapping[str, str]) -> None:
        """Raises ValueError for an invalid header; the message doesn't show its value."""
        for name, value in headers.items():
            if not _NAME.match(name) or not _VALUE.match(value):
                raise ValueError(f"the header {name!r} has a character that is not allowed")
        self._prefix = to.prefix
        self._beside = _VERSION.sub("", to.prefix)
        self._fixed = f" HTTP/1.1\r\nhost: {to.authority}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    def get(self, path: str) -> bytes:
        return f"GET {self._target(path)}{self._fixed}\r\n".encode("ascii")

    def post_json(self, path: str, body: bytes) -> bytes:
        rest = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        return f"POST {self._target(path)}{self._fixed}{rest}".encode("ascii") + body

    def _target(self, path: str) -> str:
        target = self._beside + path if path.startswith("/") else f"{self._prefix}/{path}"
        if not _TARGET.match(target):
            raise ValueError("the path has a character that is not allowed")
        return target


#: The most bytes without a byte of the body, such as heads, trailers and chunk lengths. Servers send a few hundred,
#: large providers' proxies up to ten thousand.
MAX_BARE_BYTES = 64 * 1024

_SWITCHING_PROTOCOLS = 101


class HttpFailure(Exception):
    """Why there is no response, or only a part; the message follows "the server does not answer:".

    Caught by `http_server_client.ServerExchange`.
    """

    #: A retry may help if no head has arrived.
    retryable: ClassVar[bool] = True


class BrokenReply(HttpFailure):
    """The connection ended before the response did, or the bytes are not HTTP."""


@dataclass(frozen=True, slots=True)
class ReplyHead:
    status: int
    #: Keyed by lower-case name; repeated headers are joined (RFC 9110, section 5.3).
    headers: Mapping[str, str]

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


class HttpReply:
    """Parses one response and skips informational heads before it (RFC 9110, section 15.2). httptools calls the `on_…` methods."""

    __slots__ = ("_bare_bytes", "_fields", "_parser", "_pieces", "body_bytes", "has_ended", "head", "keeps_alive")

    def __init__(self) -> None:
        self.head: ReplyHead | None = None
        self.body_bytes = 0
        self.has_ended = False
        #: Whether the connection can be reused; known at the end.
        self.keeps_alive = False
        self._fields: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._bare_bytes = 0
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    @property
    def is_untouched(self) -> bool:
        return self._bare_bytes == 0 and self.head is None

    def push(self, data: bytes) -> None:
        """Raises BrokenReply. Bytes after the end make the connection unusable."""
        if self._parser is None:
            self.keeps_alive = False
            return
        self._bare_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.keeps_alive = False
            if not self.has_ended:
                raise BrokenReply(f"it broke its protocol ({_reason(error)})") from error
        if self.has_ended:
            # Breaks the reference cycle with this object, so that both are freed at once.
            self._parser = None
        elif self._bare_bytes > MAX_BARE_BYTES:
            raise BrokenReply(f"it broke its protocol (more than {MAX_BARE_BYTES} bytes without a body)")

    def close(self) -> None:
        """The server closed its side. Raises BrokenReply if the response is incomplete."""
        if self.has_ended:
            return
        if self.head is None:
            raise BrokenReply("it closed the connection" if self.is_untouched else "it closed the connection in the head of its answer")
        headers = self.head.headers
        if "content-length" in headers or "chunked" in headers.get("transfer-encoding", "").lower():
            raise BrokenReply("it closed the connection before the end of its answer")
        self.has_ended = True
        self._parser = None

    def take(self) -> bytes:
        """Return the buffered part of the body."""
        taken = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self.body_bytes = 0
        return taken

    def on_message_begin(self) -> None:
        if self.has_ended:
            raise BrokenReply("it sent more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is None:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        fields, self._fields = self._fields, []
        if status == _SWITCHING_PROTOCOLS:
            raise BrokenReply("it switches to another protocol")
        if status < 200:
            return
        headers: dict[str, str] = {}
        for raw_name, raw_value in fields:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        self.head = ReplyHead(status, headers)

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self.body_bytes += len(piece)
        self._bare_bytes = 0

    def on_message_complete(self) -> None:
        if self.head is not None:
            assert self._parser is not None
            self.has_ended = True
            self.keeps_alive = self._parser.should_keep_alive()


def _reason(error: Exception) -> str:
    """Return what a callback raised, or else the parser's message."""
    return str(error.__context__ if isinstance(error, httptools.HttpParserCallbackError) and error.__context__ else error)
