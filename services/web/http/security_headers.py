"""Define the security headers of every response, including those from the gateway. Pure."""

from collections.abc import Iterable

Header = tuple[bytes, bytes]

#: No third-party hosts, no inline scripts, no framing, Trusted Types.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

_ALWAYS: tuple[Header, ...] = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    # `no-referrer` would make browsers send `Origin: null` with our own forms, which the origin check rejects.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    # Do not resolve hosts in links that a model wrote until the user opens one.
    (b"x-dns-prefetch-control", b"off"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    # Pages are personal. Static files override this.
    (b"cache-control", b"no-store"),
)
#: Two years, only over TLS: it would lock browsers out of a plain-HTTP test address.
_STRICT_TRANSPORT: Header = (b"strict-transport-security", b"max-age=63072000; includeSubDomains")


def secured(headers: Iterable[Header], *, over_tls: bool) -> list[Header]:
    """Return ``headers`` plus every security header that they do not set already."""
    result = list(headers)
    present = {name.lower() for name, _ in result}
    wanted = (*_ALWAYS, _STRICT_TRANSPORT) if over_tls else _ALWAYS
    result.extend(header for header in wanted if header[0] not in present)
    return result
