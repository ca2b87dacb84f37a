"""Limits on a port's connections, in total and per address."""

import pytest

from shared.node.http_connection_limits import ConnectionRefusal, HttpConnectionLimits, network


def test_each_address_has_its_own_limit() -> None:
    places = HttpConnectionLimits[int](10, 2, ())
    assert [places.enter(guest, "203.0.113.5") for guest in range(3)] == [None, None, ConnectionRefusal.TOO_MANY]
    assert places.enter(3, "203.0.113.6") is None
    places.leave(0)
    places.leave(0)
    assert [places.enter(guest, "203.0.113.5") for guest in (4, 5)] == [None, ConnectionRefusal.TOO_MANY]


@pytest.mark.parametrize(
    ("first", "second", "is_the_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:203.0.113.5", "203.0.113.5", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("203.0.113.5", "203.0.113.6", False),
    ],
)
def test_which_addresses_count_as_one(first: str, second: str, is_the_same: bool) -> None:
    places = HttpConnectionLimits[str](10, 1, ())
    assert places.enter("a", first) is None
    assert places.enter("b", second) is (ConnectionRefusal.TOO_MANY if is_the_same else None)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1", "10.1.2.3", "2001:db8:5::7", "192.0.2.1", None])
def test_addresses_shared_by_many_clients_have_no_limit(address: str | None) -> None:
    places = HttpConnectionLimits[int](100, 1, map(network, ("10.0.0.0/8", "2001:db8:5::/48", "192.0.2.1")))
    assert {places.enter(guest, address) for guest in range(50)} == {None}


def test_without_a_limit_an_address_may_use_all_places() -> None:
    places = HttpConnectionLimits[int](3, 0, ())
    assert [places.enter(guest, "203.0.113.5") for guest in range(4)] == [None, None, None, ConnectionRefusal.FULL]


def test_the_longest_idle_connection_is_closed_first() -> None:
    places = HttpConnectionLimits[int](3, 0, ())
    for guest in range(3):
        places.enter(guest, None)
        places.await_request(guest)
    assert places.longest_waiting() == 0
    places.request_received(0)
    places.await_request(1)
    assert places.longest_waiting() == 1
    places.leave(1)
    assert (places.longest_waiting(), places.enter(3, None), places.enter(4, None)) == (2, None, ConnectionRefusal.FULL)
    places.leave(2)
    assert places.longest_waiting() is None


def test_a_refused_connection_frees_no_place() -> None:
    places = HttpConnectionLimits[int](1, 0, ())
    assert (places.enter(1, None), places.enter(2, None)) == (None, ConnectionRefusal.FULL)
    places.await_request(2)
    assert places.longest_waiting() is None
