"""Which heads of requests are refused: what two servers could read in two ways, and what is too large. Pure.

The parser refuses most of it: bare line feeds, folded lines, control characters, a length that is no number or that is there twice
or beside a Transfer-Encoding. Here is what it lets pass.
"""

from collections.abc import Sequence

#: nginx takes as much; what clients send has 1 or 2 KiB.
HEAD_BYTES = 32 * 1024
#: As Apache; a browser behind two proxies sends 30.
HEADERS_MOST = 100


def find_mistake(method: str, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """A sentence for who sent it; names of headers are in lower case."""
    if version not in {"1.0", "1.1"}:
        return "this port speaks HTTP/1.1"
    # A proxy sends the path alone. Whose host would hold, of a whole address and of the header?
    if method == "CONNECT" or not target.startswith(b"/") or b"#" in target:
        return "the target of a request must be a path"
    names = [name for name, _ in headers]
    hosts = names.count(b"host")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return "a request has one Host"
    if b"transfer-encoding" in names:
        found = [value.lower() for name, value in headers if name == b"transfer-encoding"]
        # RFC 9112 §6.1: in HTTP/1.0 it is faulty framing.
        if found != [b"chunked"] or version == "1.0":
            return "the only Transfer-Encoding is chunked, in HTTP/1.1"
    if len(target) + sum(map(len, names)) + sum(len(value) for _, value in headers) > HEAD_BYTES:
        return f"the head is larger than {HEAD_BYTES} bytes"
    return None


def without_upgrade(method: str, target: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The same head as if no other protocol had been offered (RFC 9110 §7.8: a server may ignore that)."""
    lines = [b"%b: %b\r\n" % header for header in headers if header[0] != b"upgrade"]
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method.encode(), target, version.encode(), b"".join(lines))
