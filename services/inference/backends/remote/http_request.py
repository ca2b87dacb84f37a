"""Parses the URL of an HTTP server and builds the bytes of requests to it.  Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"[a-z0-9-]+\Z")
#: RFC 9110, section 5.5, ASCII only: a line break would inject another header.
_VALUE = re.compile(r"[!-~]([\t -~]*[!-~])?\Z")
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


class RequestWriter:
    """Builds requests to one origin with the same headers. Its repr hides them: one has the key."""

    def __init__(self, to: ServerOrigin, headers: Mapping[str, str]) -> None:
        """Raises ValueError for an invalid header; the message doesn't show its value."""
        for name, value in headers.items():
            if not _NAME.match(name) or not _VALUE.match(value):
                raise ValueError(f"the header {name!r} has a character that is not allowed")
        self._prefix = to.prefix
        self._fixed = f" HTTP/1.1\r\nhost: {to.authority}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    def get(self, path: str) -> bytes:
        return f"GET {self._target(path)}{self._fixed}\r\n".encode("ascii")

    def post_json(self, path: str, body: bytes) -> bytes:
        rest = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        return f"POST {self._target(path)}{self._fixed}{rest}".encode("ascii") + body

    def _target(self, path: str) -> str:
        target = self._prefix + path
        if not _TARGET.match(target):
            raise ValueError("the path has a character that is not allowed")
        return target
