"""WEBHOOK_ALLOWED_HOSTS permits what it names, and nothing beside it."""

import pytest

from features.webhooks.rules import receiver_rules
from features.webhooks.rules.receiver_rules import ReceiverRules

RULES = ReceiverRules.parse(["jobs.internal:8080", "10.20.0.0/16", "[fd00::1]:9000", "192.168.0.9:80"])


@pytest.mark.parametrize(
    ("url", "address", "is_allowed"),
    [
        ("http://jobs.internal:8080/", "10.0.0.1", True),
        ("http://JOBS.internal.:8080/", "10.0.0.1", True),
        ("https://jobs.internal:8080/", "10.0.0.1", True),
        ("http://jobs.internal:8081/", "10.0.0.1", False),
        ("http://other.internal:8080/", "10.0.0.1", False),
        ("http://jobs.internal.evil.example:8080/", "10.0.0.1", False),
        ("http://other.internal/", "10.20.255.1", True),
        ("http://other.internal/", "::ffff:10.20.255.1", True),
        ("http://other.internal/", "64:ff9b::10.20.255.1", False),
        ("http://other.internal/", "10.21.0.1", False),
        ("http://[fd00:0::1]:9000/", "fd00::1", True),
        ("http://192.168.0.9/", "192.168.0.9", True),
        ("http://jobs.internal:8080/", "169.254.169.254", False),
        ("https://example.org/", "93.184.215.14", True),
        ("https://example.org:8443/", "93.184.215.14", True),
        ("https://example.org:22/", "93.184.215.14", False),
        ("http://example.org/", "93.184.215.14", False),
    ],
)
def test_what_is_allowed(url: str, address: str, is_allowed: bool) -> None:
    mistake = RULES.find_mistake(receiver_rules.read_url(url), address)
    assert (mistake == "") is is_allowed, mistake


@pytest.mark.parametrize(
    "entry", ["", "*", "example.org", "example.org:0", "example.org:70000", "10.0.0.0/33", "10.0.0.1/8", "https://example.org:443", "a b:1"]
)
def test_a_mistake_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        ReceiverRules.parse([entry])


def test_names_go_on_the_wire_in_ascii() -> None:
    found = receiver_rules.read_url("https://bücher.example/hook?ü=1")
    assert (found.host, found.authority, found.target) == ("xn--bcher-kva.example", "xn--bcher-kva.example", "/hook?%C3%BC=1")
    assert receiver_rules.read_url("https://[2001:db8::1]:8443/").authority == "[2001:db8::1]:8443"
