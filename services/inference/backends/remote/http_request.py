"""Where an HTTP server is, and the bytes of a request to it.  Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"[a-z0-9-]+\Z")
#: RFC 9110, section 5.5, without the bytes beyond ASCII: whatever ends a line would begin a header that nobody meant to send.
_VALUE = re.compile(r"[!-~]([\t -~]*[!-~])?\Z")
_TARGET = re.compile(r"/[!-~]*\Z")
#: What a path may have beside letters and digits (RFC 3986, section 3.3); `%` stays, because it begins what is escaped already.
_PATH_MARKS = "/%:@!$&'()*+,;=~-._"


@dataclass(frozen=True, slots=True)
class ServerOrigin:
    """One address of a server, and the path in front of all of its paths."""

    #: As the resolver and the certificate know it: an IPv6 address stands without brackets.
    host: str
    port: int
    is_tls: bool
    #: As the Host header has it.
    authority: str
    #: Without a slash at its end.
    prefix: str


def origin(url: str) -> ServerOrigin:
    """Raises ValueError with a sentence that does not show the URL, which may hold a password."""
    try:
        parts = urlsplit(url)
        given = parts.port
        host = (parts.hostname or "").encode("idna").decode("ascii") if ":" not in (parts.hostname or "") else str(parts.hostname)
    except ValueError as error:
        # A UnicodeError too: a label that is empty, or longer than 63 letters.
        raise ValueError("the URL cannot be read") from error
    if parts.scheme not in _DEFAULT_PORTS or not host or parts.username is not None or parts.password is not None:
        raise ValueError("the URL must be http:// or https:// with a host and no password")
    # The zone of a link-local address means something on this machine alone.
    shown = f"[{host.partition('%')[0]}]" if ":" in host else host
    default = _DEFAULT_PORTS[parts.scheme]
    port = default if given is None else given
    if not _VALUE.match(shown):
        raise ValueError("the host has a character that no header can carry")
    return ServerOrigin(
        host=host,
        port=port,
        is_tls=parts.scheme == "https",
        authority=shown if port == default else f"{shown}:{port}",
        prefix=quote(parts.path.rstrip("/"), safe=_PATH_MARKS),
    )


class RequestWriter:
    """Writes requests to one origin, each with the same headers. Its repr does not show them: one is the key."""

    def __init__(self, to: ServerOrigin, headers: Mapping[str, str]) -> None:
        """Raises ValueError for a header that cannot be one, without its value."""
        for name, value in headers.items():
            if not _NAME.match(name) or not _VALUE.match(value):
                raise ValueError(f"the header {name!r} has a character that no header can carry")
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
            raise ValueError("the path has a character that no request can carry")
        return target
