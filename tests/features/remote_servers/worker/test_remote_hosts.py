"""Which hosts and addresses administrators' servers may have."""

import pytest

from features.remote_servers.worker.rules.remote_hosts import RemoteHosts
from shared import errors

HOSTS = RemoteHosts(("api.openai.com", "*.Example.org", "10.0.0.5", "127.0.0.1", "169.254.169.254", "fd00:ec2::254"))


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "https://API.OpenAI.com./v1",
        "http://vllm.example.org:8000/v1",
        "http://10.0.0.5:8000/v1",
        "http://[::ffff:127.0.0.1]:11434",
    ],
)
def test_hosts_of_the_setting_are_allowed(url: str) -> None:
    HOSTS.check(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/v1",
        "http://api.openai.com.evil.net/v1",
        "http://10.0.0.55/v1",
        "http://localhost:8000/v1",
        "http://[::1]:8000/v1",
        # Other ways to write 127.0.0.1; a resolver may know them.
        "http://2130706433/v1",
        "http://0x7f.1/v1",
    ],
)
def test_other_hosts_are_refused_with_the_setting(url: str) -> None:
    with pytest.raises(errors.NotAllowed, match="REMOTE_MODEL_HOSTS"):
        HOSTS.check(url)
    with pytest.raises(errors.NotAllowed, match="REMOTE_MODEL_HOSTS"):
        RemoteHosts(()).check("https://api.openai.com/v1")


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "100.100.100.200",
        "168.63.129.16",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "not an address",
    ],
)
def test_metadata_addresses_are_refused_even_if_the_setting_names_them(address: str) -> None:
    for url in ("http://169.254.169.254/v1", "http://[fd00:ec2::254]/v1", "http://10.0.0.5/v1", "http://a.example.org/v1"):
        assert "never allowed" in HOSTS.mistake(url, address)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.5", "192.168.1.2", "100.64.0.1", "fd12::1", "::ffff:10.0.0.5"])
def test_private_addresses_need_the_host_itself(address: str) -> None:
    assert not HOSTS.mistake("http://10.0.0.5/v1", address)
    assert not HOSTS.mistake("https://api.openai.com/v1", address)
    assert "is private" in HOSTS.mistake("http://vllm.example.org/v1", address), "whoever has a name there could let it lead anywhere"


def test_public_addresses_are_allowed_for_patterns() -> None:
    assert not HOSTS.mistake("http://vllm.example.org/v1", "1.1.1.1")
    assert not HOSTS.mistake("http://vllm.example.org/v1", "2606:4700::1111")
