"""The security headers that every answer carries, pages and passed-through ones alike. Pure."""

from collections.abc import Iterable

Header = tuple[bytes, bytes]

#: Nothing is loaded from anywhere else, nothing inline runs, no script makes markup of text, and nobody frames us.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

_ALWAYS: tuple[Header, ...] = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    # `no-referrer` would make browsers send `Origin: null` with our own forms, and the origin check would refuse them.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    # Where a page has links that a model wrote, their hosts are not looked up before somebody follows one.
    (b"x-dns-prefetch-control", b"off"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    # Pages are personal and answers are private; what may be kept (static files) says so itself.
    (b"cache-control", b"no-store"),
)
#: Two years. Only over TLS: a browser that saw it on a plain-HTTP test address could not come back.
_STRICT_TRANSPORT: Header = (b"strict-transport-security", b"max-age=63072000; includeSubDomains")


def secured(headers: Iterable[Header], *, over_tls: bool) -> list[Header]:
    """``headers`` with every security header added that they do not set themselves."""
    result = list(headers)
    present = {name.lower() for name, _ in result}
    wanted = (*_ALWAYS, _STRICT_TRANSPORT) if over_tls else _ALWAYS
    result.extend(header for header in wanted if header[0] not in present)
    return result
