"""Which servers a client may connect to, and how little it trusts what a server says about others."""

import pytest

from shared.transports.nats.servers import ServerAddress, ServerList, read_urls


def learned(url: str, connect_urls: tuple[str, ...], *, tls: bool = False) -> set[str]:
    [configured] = read_urls(url)
    servers = ServerList((configured,))
    servers.learn(connect_urls, by=configured, tls=tls)
    return {str(server) for server in servers.in_order()} - {str(configured)}


def test_addresses_are_parsed_with_their_credentials() -> None:
    assert read_urls("nats://h, tls://a%40b:p%2Fq@[::1]:4333, nats://tok@h:1") == (
        ServerAddress("h", 4222, tls=False, certified_name="h"),
        ServerAddress("::1", 4333, tls=True, certified_name="::1", user="a@b", password="p/q"),
        ServerAddress("h", 1, tls=False, certified_name="h", token="tok"),
    )


def test_an_address_is_shown_without_its_credentials() -> None:
    assert [str(each) for each in read_urls("nats://alice:secret@h,tls://secret@[::1]:1")] == ["nats://h:4222", "tls://[::1]:1"]


@pytest.mark.parametrize(
    ("url", "connect_urls", "found"),
    [
        pytest.param("nats://127.0.0.1:1", ("127.0.0.1:1", "127.0.0.1:2"), {"nats://127.0.0.1:2"}, id="a cluster on this machine"),
        pytest.param("nats://127.0.0.1:1", ("10.0.0.1:4222",), set(), id="no plain text beyond this machine"),
        pytest.param("nats://10.0.0.1:1", ("10.0.0.2:4222",), {"nats://10.0.0.2:4222"}, id="plain text where it is allowed"),
        pytest.param("tls://h:1", ("10.0.0.2:4222", "[::1]:5"), {"tls://10.0.0.2:4222", "tls://[::1]:5"}, id="never less encryption"),
        pytest.param("nats://127.0.0.1:1", ("", "[", "::", "x:notaport"), set(), id="what is no address"),
    ],
)
def test_servers_are_learned(url: str, connect_urls: tuple[str, ...], found: set[str]) -> None:
    assert learned(url, connect_urls, tls=url.startswith("tls")) == found


def test_a_server_cannot_name_endless_others() -> None:
    assert len(learned("nats://127.0.0.1:1", tuple(f"127.0.0.1:{port}" for port in range(2, 1000)))) == 64


def test_a_learned_address_gets_the_same_credentials_and_server_name() -> None:
    [configured] = read_urls("tls://alice:pw@nats.example.org")
    servers = ServerList((configured,))
    servers.learn(("10.0.0.2:4222", "b.example.org:4222"), by=configured, tls=True)
    found = {server.host: server for server in servers.in_order() if server != configured}
    assert {host: server.certified_name for host, server in found.items()} == {
        "10.0.0.2": "nats.example.org",
        "b.example.org": "b.example.org",
    }
    assert {(server.user, server.password) for server in found.values()} == {("alice", "pw")}
