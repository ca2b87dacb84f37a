import pytest

from services.web.http import security_headers


def test_every_security_header_is_added() -> None:
    added = dict(security_headers.secured([], over_tls=False))
    assert added[b"x-content-type-options"] == b"nosniff"
    assert added[b"cache-control"] == b"no-store"
    assert b"default-src 'none'" in added[b"content-security-policy"]
    assert b"unsafe" not in added[b"content-security-policy"]


@pytest.mark.parametrize("over_tls", [True, False])
def test_strict_transport_only_over_tls(over_tls: bool) -> None:
    assert (b"strict-transport-security" in dict(security_headers.secured([], over_tls=over_tls))) is over_tls


def test_headers_of_the_response_are_kept() -> None:
    headers = [(b"Cache-Control", b"public, max-age=60"), (b"content-type", b"text/css")]
    result = security_headers.secured(headers, over_tls=True)
    assert result[:2] == headers
    assert [name for name, _ in result if name.lower() == b"cache-control"] == [b"Cache-Control"]
