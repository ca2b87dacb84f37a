"""Which addresses may be used without TLS: only this machine."""

import pytest

from shared import addresses


@pytest.mark.parametrize(
    ("urls", "plain"),
    [
        ("nats://127.0.0.1:4222", []),
        ("nats://localhost", []),
        ("ws://localhost:8080/mesh", []),
        ("ws://ai.example.org/mesh", ["ai.example.org"]),
        ("wss://ai.example.org/mesh?pin=abc", []),
        ("nats://[::1]:4222", []),
        ("tls://nats.example.org:4222", []),
        ("NATS://nats.example.org", ["nats.example.org"]),
        ("tls://a.example.org, nats://user:canary@10.0.0.5:4222", ["10.0.0.5"]),
        ("nats://127.0.0.1.example.org", ["127.0.0.1.example.org"]),
    ],
)
def test_other_machines_without_tls_are_found(urls: str, plain: list[str]) -> None:
    assert addresses.plain_hosts(urls) == plain


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07::1", True),
        ("64:ff9b::93.184.215.14", True),
        ("2002:5db8:d70e::1", True),
        ("10.0.0.1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b:1::10.0.0.1", False),
        ("2002:a00:1::1", False),
        ("2001:0:4136:e378:8000:63bf:f5ff:fffe", False),
        ("::10.0.0.1", False),
        ("::ffff:0:10.0.0.1", False),
        ("fec0::1", False),
    ],
)
def test_an_address_that_leads_to_a_private_one_is_not_public(address: str, is_public: bool) -> None:
    assert addresses.is_public(address) is is_public


@pytest.mark.parametrize("address", ["64:ff9b::169.254.169.254", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe:8000:63bf:5601:5601"])
def test_an_address_that_leads_to_metadata_is_forbidden(address: str) -> None:
    assert addresses.is_forbidden(address)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("house.example.org", True),
        ("house", True),
        ("a-1.3com.example", True),
        ("203.0.113", False),
        ("203.0.113.256", False),
        ("-a.example.org", False),
        ("a..example.org", False),
        ("house.example.org:4737", False),
        ("::1", False),
        ("x" * 64, False),
        (".".join(["x"] * 127), True),
        (".".join(["x"] * 128), False),
        ("", False),
    ],
)
def test_host_names_are_distinguished_from_mistyped_addresses(text: str, is_one: bool) -> None:
    assert addresses.is_host_name(text) is is_one


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("203.0.113.5:4737", ""),
        ("house.example.org:4737", ""),
        ("house.example.org", "not host:port"),
        ("house.example.org:0", "not host:port"),
        ("[2001:db8::1]:4737", "the DHT is IPv4 only"),
    ],
)
def test_a_dht_node_is_a_host_and_a_port(text: str, mistake: str) -> None:
    found = addresses.mistake_of_node(text)
    assert mistake in found
    assert bool(found) is bool(mistake)


@pytest.mark.parametrize(
    ("host", "is_here"),
    [
        ("localhost", True),
        ("LocalHost", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.5", False),
        ("", False),
    ],
)
def test_loopback_is_recognized_in_any_form(host: str, is_here: bool) -> None:
    assert addresses.is_loopback(host) is is_here


@pytest.mark.parametrize("url", ["nats.example.org:4222", "http://canary.example.org", "nats://", "nats://h:canary", "nats://[canary", ""])
def test_an_invalid_address_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ValueError, match="not an address") as refused:
        addresses.plain_hosts(url)
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize("url", ["nats://a:12#canary@h", "tls://h/canary", "tls://h?canary", "nats://a:1/canary@h"])
def test_anything_after_host_and_port_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="nothing may follow host and port") as refused:
        addresses.plain_hosts(url)
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("10.0.0.5", 4222, "10.0.0.5:4222"),
        ("mesh.example.org", None, "mesh.example.org"),
        ("2001:db8::1", 4222, "[2001:db8::1]:4222"),
        ("[2001:db8::1]", 4222, "[2001:db8::1]:4222"),
        ("2001:db8::1", None, "[2001:db8::1]"),
    ],
)
def test_ipv6_addresses_get_brackets(host: str, port: int | None, text: str) -> None:
    assert addresses.host_port(host, port) == text
