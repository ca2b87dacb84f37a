"""What may be spoken to in plain text: this machine, and nobody else."""

import pytest

from shared import addresses


@pytest.mark.parametrize(
    ("urls", "plain"),
    [
        ("nats://127.0.0.1:4222", []),
        ("nats://localhost", []),
        ("nats://[::1]:4222", []),
        ("tls://nats.example.org:4222", []),
        ("NATS://nats.example.org", ["nats.example.org"]),
        ("tls://a.example.org, nats://user:canary@10.0.0.5:4222", ["10.0.0.5"]),
        ("nats://127.0.0.1.example.org", ["127.0.0.1.example.org"]),
    ],
)
def test_other_machines_without_tls_are_found(urls: str, plain: list[str]) -> None:
    assert addresses.plain_hosts(urls) == plain


@pytest.mark.parametrize("url", ["nats.example.org:4222", "ws://canary.example.org", "nats://", "nats://h:canary", "nats://[canary", ""])
def test_what_is_no_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="not an address") as refused:
        addresses.plain_hosts(url)
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("url", ["nats://a:12#canary@h", "tls://h/canary", "tls://h?canary", "nats://a:1/canary@h"])
def test_what_follows_host_and_port_would_be_ignored_and_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="nothing may follow host and port") as refused:
        addresses.plain_hosts(url)
    assert "canary" not in str(refused.value)
