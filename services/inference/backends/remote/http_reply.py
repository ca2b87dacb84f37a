"""Parses one HTTP/1.1 response from the bytes of a connection, however they are split.  Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import httptools

#: The most bytes without a byte of the body, such as heads, trailers and chunk lengths. Servers send a few hundred,
#: large providers' proxies up to ten thousand.
MAX_BARE_BYTES = 64 * 1024

_SWITCHING_PROTOCOLS = 101


class HttpFailure(Exception):
    """Why there is no response, or only a part; the message follows "the server does not answer:".

    Caught by `http_server_client.translated`.
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
