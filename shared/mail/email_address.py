"""Check the form of an email address. Pure."""

import re

# What <input type=email> accepts: https://html.spec.whatwg.org/#valid-e-mail-address. Only a delivered mail proves more.
_EMAIL = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
LONGEST = 100


def may_be_email(text: str) -> bool:
    # The length first: it also bounds the time of the pattern.
    return len(text) <= LONGEST and _EMAIL.fullmatch(text) is not None
