"""Parse SMTP_URL. Pure. No message quotes it, because it may contain a password."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from shared import addresses


class Security(StrEnum):
    """How connections are encrypted."""

    #: Only on this machine.
    NONE = "none"
    #: RFC 3207; required before anything else is sent.
    STARTTLS = "starttls"
    #: From the first byte.
    TLS = "tls"


_PORTS = {"smtp": 587, "smtps": 465}


@dataclass(frozen=True, slots=True, kw_only=True)
class MailServer:
    host: str
    port: int
    security: Security
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    #: Certificate authority for the server, instead of the system's.
    ca_file: Path | None = None


def parse(url: str) -> MailServer:
    """Raises ValueError with all mistakes."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # The original error would quote the URL.
        raise ValueError("its host or port is invalid") from None
    if mistakes := list(_mistakes(parts)):
        raise ValueError("; ".join(mistakes))
    options, host = parse_qs(parts.query), unquote(parts.hostname or "")
    ca_file = Path(options["ca"][0]) if "ca" in options else None
    return MailServer(
        host=host,
        port=port or _PORTS[parts.scheme],
        security=_security(parts.scheme, host, ca_file),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        ca_file=ca_file,
    )


def _mistakes(parts: SplitResult) -> Iterator[str]:
    if parts.scheme not in _PORTS:
        yield "it begins with neither smtp:// nor smtps://"
    host = unquote(parts.hostname or "")
    if not host or not host.isprintable() or " " in host:
        yield "it names no host"
    if parts.port == 0:
        yield "port 0 is invalid"
    if bool(parts.username) != bool(parts.password):
        yield "a user name and a password go together"
    if any(not text.isprintable() for text in (unquote(parts.username or ""), unquote(parts.password or ""))):
        yield "its user name or its password has characters that cannot be printed"
    if parts.path not in ("", "/") or parts.fragment:
        yield "there is something after the host"
    options = parse_qs(parts.query, keep_blank_values=True)
    if options.keys() - {"ca"}:
        yield "it has an option other than ca, the file of the server's authority"
    if options.get("ca") == [""]:
        yield "its option ca names no file"


def _security(scheme: str, host: str, ca_file: Path | None) -> Security:
    if scheme == "smtps":
        return Security.TLS
    return Security.NONE if addresses.is_loopback(host) and ca_file is None else Security.STARTTLS
