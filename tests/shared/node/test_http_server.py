"""Who may read /metrics, /readyz and /dependencies on a public port."""

from pathlib import Path

import pytest

from shared.node import http_server
from shared.node.settings import PublicNodeSettings

TOKEN = "a token of a scraper"
SETTINGS = PublicNodeSettings(node_key_file=Path("/nowhere"), metrics_networks=("10.0.0.0/8", "2001:db8::7"), metrics_token=TOKEN)
NOBODY = PublicNodeSettings(node_key_file=Path("/nowhere"))
FORWARDED = (b"x-forwarded-for", b"127.0.0.1")


def allowed(settings: PublicNodeSettings, address: str | None, *headers: tuple[bytes, bytes], port: int = 50000) -> bool:
    client = None if address is None else (address, port)
    return http_server.may_observe({"type": "http", "client": client, "headers": list(headers)}, settings)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.77", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("settings", [SETTINGS, NOBODY])
def test_this_machine_may_scrape_unless_a_proxy_on_it_forwards_for_another(settings: PublicNodeSettings, address: str) -> None:
    assert allowed(settings, address)
    for name in (b"X-Forwarded-For", b"forwarded", b"x-real-ip", b"via", b"x-forwarded-host"):
        assert not allowed(settings, address, (name, b"127.0.0.1"))


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::8", None, "nonsense"])
def test_other_machines_may_not_scrape(address: str | None) -> None:
    assert not allowed(SETTINGS, address)
    assert not allowed(SETTINGS, address, (b"authorization", b"Bearer another token"))
    assert not allowed(SETTINGS, address, (b"x-forwarded-for", b"10.0.0.1"))
    assert not allowed(NOBODY, address, (b"authorization", b"Bearer "))


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::7"])
def test_networks_in_the_settings_may_scrape(address: str) -> None:
    assert allowed(SETTINGS, address)
    assert not allowed(NOBODY, address)
    # An untrusted proxy may forward any address; a trusted proxy forwards the scraper's own address, with port 0.
    assert not allowed(SETTINGS, address, FORWARDED)
    assert allowed(SETTINGS, address, FORWARDED, port=0)


def test_a_scraper_with_the_token_may_scrape_from_anywhere() -> None:
    right = (b"authorization", f"Bearer {TOKEN}".encode())
    assert allowed(SETTINGS, "192.0.2.7", right)
    assert allowed(SETTINGS, "127.0.0.1", right, FORWARDED)
    assert not allowed(NOBODY, "192.0.2.7", right)
    assert not allowed(SETTINGS, "192.0.2.7", right, right)


def test_an_invalid_network_is_named() -> None:
    settings = PublicNodeSettings(node_key_file=Path("/nowhere"), metrics_networks=("prometheus",))
    assert any("METRICS_NETWORKS: 'prometheus'" in mistake for mistake in settings.mistakes())
