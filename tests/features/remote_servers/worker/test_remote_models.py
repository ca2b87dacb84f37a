"""Which servers belong to a provider."""

import asyncio
from typing import Any

import pytest

from features.remote_servers.worker import remote_models
from features.remote_servers.worker.upstreams import Upstream


@pytest.mark.parametrize(
    ("url", "outside"),
    [
        ("http://127.0.0.1:8000/v1", False),
        ("http://localhost/v1", False),
        ("http://[::1]/v1", False),
        ("http://10.1.2.3/v1", False),
        ("http://192.168.0.9/v1", False),
        ("http://100.64.0.7/v1", False),  # a VPN address
        ("http://[fd00::1]/v1", False),
        ("http://[fe80::1]/v1", False),
        ("http://8.8.8.8/v1", True),
        ("http://[2606:4700::1111]/v1", True),
        ("http://[::ffff:8.8.8.8]/v1", True),
        ("http://no-such-host.invalid/v1", True),
    ],
)
async def test_a_server_is_outside_unless_all_its_addresses_are_private(url: str, *, outside: bool) -> None:
    assert await remote_models.is_outside(url) is outside


async def test_a_name_with_one_public_address_is_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", ("10.0.0.5", 0)), (2, 1, 6, "", ("8.8.8.8", 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    assert await remote_models.is_outside("http://two.example.org/v1")


@pytest.mark.parametrize(
    ("url", "external", "provider"),
    [
        ("http://10.0.0.5/v1", None, ""),
        ("http://10.0.0.5/v1", True, "acme"),
        ("https://8.8.8.8/v1", None, "acme"),
        ("https://8.8.8.8/v1", False, ""),
    ],
)
async def test_who_gets_the_prompts(url: str, *, external: bool | None, provider: str) -> None:
    upstream = Upstream(name="x", url=url, provider="acme", external=external)
    assert await remote_models.find_provider(upstream) == provider
