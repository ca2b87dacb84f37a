"""Which texts a mail may be sent to. Which of them an account may have: tests/services/auth/test_name_rules.py."""

import time

import pytest

from shared.mail import email_address


@pytest.mark.parametrize("text", ["anna@example.org", "a.b+c@mail.example.org", "root@localhost"])
def test_valid_addresses(text: str) -> None:
    assert email_address.may_be_email(text)


@pytest.mark.parametrize(
    "text", ["", "anna", "anna@", "@example.org", "a@b@c", "a b@c.d", "anna@example.org\n", "a@b.c,d@e.f", "a@-b.c", "ä@b.c"]
)
def test_invalid_addresses(text: str) -> None:
    assert not email_address.may_be_email(text)


def test_the_length_limit_and_overlong_addresses_are_cheap() -> None:
    longest = "a" * (email_address.LONGEST - len("@example.org")) + "@example.org"
    assert email_address.may_be_email(longest)
    assert not email_address.may_be_email("a" + longest)
    began = time.process_time()
    assert not email_address.may_be_email("a@" + "a-" * 10_000_000)
    assert time.process_time() - began < 0.5
