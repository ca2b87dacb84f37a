"""Which user names and email addresses are accepted, and that no other text is."""

import pytest

from services.auth import name_rules
from shared import errors


@pytest.mark.parametrize("name", ["bob", "john_doe", "Anna-Maria", "a.b.c", "x" * 50, "007"])
def test_valid_usernames(name: str) -> None:
    name_rules.check_username(name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("ab", id="two characters"),
        pytest.param("x" * 51, id="51 characters"),
        pytest.param("x'; DROP TABLE users; --", id="SQL"),
        pytest.param("<script>alert(1)</script>", id="HTML"),
        pytest.param("bob\n", id="a newline at the end"),
        pytest.param("bob\0", id="a NUL"),
        pytest.param("bob doe", id="a space"),
        pytest.param("bob@example.com", id="an address"),
        pytest.param("аdmin", id="a Cyrillic a"),
        pytest.param("0b5dc5d8-4a4b-4b3f-8a2e-0d9a3a0c5e11", id="looks like an id"),
        pytest.param("0b5dc5d84a4b4b3f8a2e0d9a3a0c5e11", id="looks like an id without dashes"),
    ],
)
def test_invalid_usernames_name_the_rule(name: str) -> None:
    with pytest.raises(errors.BadRequest, match="username"):
        name_rules.check_username(name)


@pytest.mark.parametrize("name", ["admin", "ADMIN"])
def test_the_administrators_name_is_reserved(name: str) -> None:
    with pytest.raises(errors.AlreadyExists, match="the user name admin is reserved"):
        name_rules.check_username(name)


@pytest.mark.parametrize("email", ["a@b.c", "john.doe+ai@mail.example.com", "root@localhost", "o'brien@example.ie"])
def test_valid_addresses(email: str) -> None:
    name_rules.check_email(email)


@pytest.mark.parametrize(
    "email",
    [
        "",
        "john",
        "@example.com",
        "john@",
        "a@b@c",
        "a b@c.d",
        "a@b..c",
        "<b>@example.com",
        "a@example.com\n",
        "a\0@b.c",
        "x" * 95 + "@b.com",
        "a@-b.c",
    ],
)
def test_invalid_addresses(email: str) -> None:
    with pytest.raises(errors.BadRequest, match="email"):
        name_rules.check_email(email)


def test_the_administrators_address_is_reserved() -> None:
    with pytest.raises(errors.AlreadyExists, match="the address admin@localhost is reserved"):
        name_rules.check_email("Admin@Localhost")


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\nb", "a\0b", "\u202eabc"])
def test_invalid_key_names(name: str) -> None:
    with pytest.raises(errors.BadRequest, match="name"):
        name_rules.check_key_name(name)


def test_a_key_may_be_named_in_any_language() -> None:
    name_rules.check_key_name("Schlüssel für Bücher 书")


@pytest.mark.parametrize(
    ("written", "compared"),
    [
        pytest.param("192.0.2.0/24", "192.0.2.0/24", id="as it is"),
        pytest.param(" 192.0.2.77/24 ", "192.0.2.0/24", id="an address in it"),
        pytest.param("192.0.2.7", "192.0.2.7/32", id="one address"),
        pytest.param("2001:DB8:0::/32", "2001:db8::/32", id="IPv6 in other letters"),
        pytest.param("::ffff:192.0.2.0/120", "192.0.2.0/24", id="IPv4 in its IPv6 clothes"),
        pytest.param("::ffff:0:0/64", "::/64", id="more than IPv4"),
    ],
)
def test_networks_are_stored_normalized(written: str, compared: str) -> None:
    assert name_rules.networks_of([written, written]) == (compared,)


@pytest.mark.parametrize(
    "written", ["", "10", "10.0.0.0/33", "300.0.0.1", "example.com", "10.0.0.0/8,11.0.0.0/8", "fe80::1%eth0/64", "١٠.0.0.0"]
)
def test_invalid_networks(written: str) -> None:
    with pytest.raises(errors.BadRequest, match="networks"):
        name_rules.networks_of([written])


def test_a_keys_models_and_networks_are_limited() -> None:
    assert len(name_rules.models_of([str(n) for n in range(100)] * 2)) == 100
    assert len(name_rules.networks_of([f"10.0.{n}.0/24" for n in range(20)])) == 20
    for many in ([str(n) for n in range(101)], ["a\nb"], [""], ["x" * 201]):
        with pytest.raises(errors.BadRequest, match="models"):
            name_rules.models_of(many)
    with pytest.raises(errors.BadRequest, match="networks"):
        name_rules.networks_of([f"10.0.{n}.0/24" for n in range(21)])
