"""Which addresses stay on this machine, and which would carry plain text over a network. Pure."""

from urllib.parse import urlsplit

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def plain_hosts(nats_urls: str) -> list[str]:
    """The other machines among these addresses, separated by commas, that would be spoken to without TLS.

    Raises ValueError for what is no address; the message repeats none of it, because there may be a password in it.
    """
    found = []
    for url in nats_urls.split(","):
        try:
            parts = urlsplit(url.strip())
            # Reading the port is what finds a wrong one.
            _ = parts.port
        except ValueError:
            raise ValueError("not an address such as tls://nats.example.org:4222") from None
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise ValueError("not an address such as tls://nats.example.org:4222")
        if parts.scheme == "nats" and parts.hostname not in LOOPBACK:
            found.append(parts.hostname)
    return found
