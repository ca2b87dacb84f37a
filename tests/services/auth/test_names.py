"""Which names and addresses are taken, and that no other text is."""

import pytest

from services.auth import names
from shared import errors


@pytest.mark.parametrize("name", ["bob", "john_doe", "Anna-Maria", "a.b.c", "x" * 50, "007"])
def test_good_usernames(name: str) -> None:
    names.check_username(name)


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
def test_bad_usernames_name_the_rule(name: str) -> None:
    with pytest.raises(errors.BadRequest, match="username"):
        names.check_username(name)


@pytest.mark.parametrize("name", ["admin", "ADMIN"])
def test_the_administrators_name_is_reserved(name: str) -> None:
    with pytest.raises(errors.AlreadyExists):
        names.check_username(name)


@pytest.mark.parametrize("email", ["a@b.c", "john.doe+ai@mail.example.com", "root@localhost", "o'brien@example.ie"])
def test_good_addresses(email: str) -> None:
    names.check_email(email)


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
def test_bad_addresses(email: str) -> None:
    with pytest.raises(errors.BadRequest, match="email"):
        names.check_email(email)


def test_the_administrators_address_is_reserved() -> None:
    with pytest.raises(errors.AlreadyExists):
        names.check_email("Admin@Localhost")


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\nb", "a\0b", "\u202eabc"])
def test_bad_key_names(name: str) -> None:
    with pytest.raises(errors.BadRequest, match="name"):
        names.check_key_name(name)


def test_a_key_may_be_called_in_any_language() -> None:
    names.check_key_name("Schlüssel für Bücher 书")
