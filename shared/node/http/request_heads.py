"""Refuses request heads that are too large, or that two servers could read differently. Pure.

The parser itself refuses bare line feeds, folded lines, control characters, and invalid, repeated or conflicting lengths. This module
covers what it lets through.
"""

from collections.abc import Sequence

#: The same as nginx. Clients send 1 or 2 KiB.
HEAD_BYTES = 32 * 1024
#: The same as Apache. A browser behind two proxies sends 30.
HEADERS_MOST = 100


def find_mistake(method: str, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """Return a sentence for the client, or None. Header names must be lowercase."""
    if version not in {"1.0", "1.1"}:
        return "this port only supports HTTP/1.1"
    # Proxies send only the path. A full URL and the Host header could name different hosts.
    if method == "CONNECT" or not target.startswith(b"/") or b"#" in target:
        return "the request target must be a path"
    names = [name for name, _ in headers]
    hosts = names.count(b"host")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return "a request needs exactly one Host header"
    if b"transfer-encoding" in names:
        found = [value.lower() for name, value in headers if name == b"transfer-encoding"]
        # In HTTP/1.0 it is invalid framing (RFC 9112 §6.1).
        if found != [b"chunked"] or version == "1.0":
            return "the only supported Transfer-Encoding is chunked, in HTTP/1.1"
    if len(target) + sum(map(len, names)) + sum(len(value) for _, value in headers) > HEAD_BYTES:
        return f"the head is larger than {HEAD_BYTES} bytes"
    return None


def without_upgrade(method: str, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the head without the offer of another protocol, which a server may ignore (RFC 9110 §7.8)."""
    lines = [b"%b: %b\r\n" % header for header in headers if header[0] != b"upgrade"]
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method.encode(), target, version.encode(), b"".join(lines))
