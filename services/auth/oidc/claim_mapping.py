"""What the provider says about a person, in our words: the role that their groups give them, and a user name. Pure."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from services.auth import name_rules
from shared import errors
from shared.types import UserRole

#: Of several matches the first of these holds.
BY_POWER = (UserRole.ADMIN, UserRole.DEVELOPER, UserRole.NODE_OWNER, UserRole.USER)

_SHORTEST_NAME = 3
#: Room for a number behind it; a user name has at most 50.
_LONGEST_NAME = 44
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")
#: So many of the same name, and then somebody has to choose one.
_MOST_NUMBERED = 1000


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is, as the provider vouches for it. ``(issuer, subject)`` is the person; all else may change."""

    issuer: str
    subject: str
    email: str | None = None
    email_verified: bool = False
    username: str | None = None
    groups: tuple[str, ...] = ()
    #: How the person proved it there, in the words of RFC 8176: `pwd`, `otp`, `mfa` …
    methods: tuple[str, ...] = ()
    #: When that was, in seconds since 1970.
    authenticated_at: float | None = None
    #: For logging out at the provider.
    id_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class RoleTable:
    """Which group gives which role. Empty: roles are given here, and the provider has no say in them."""

    roles: Mapping[str, UserRole] = field(default_factory=dict)

    def role_of(self, groups: tuple[str, ...]) -> UserRole | None:
        """The most powerful that one of the groups gives, and a plain user's without any; None where the table is empty."""
        if not self.roles:
            return None
        given = {self.roles[group] for group in groups if group in self.roles}
        return next((role for role in BY_POWER if role in given), UserRole.USER)


def read_identity(issuer: str, subject: str, said: Mapping[str, object], groups_claim: str, id_token: str = "") -> Identity:
    """``said`` are the claims of the ID token and of the userinfo; those of another form than they should have are left out."""
    auth_time = said.get("auth_time")
    return Identity(
        issuer=issuer,
        subject=subject,
        email=_text(said.get("email")),
        # Some providers write it as a text.
        email_verified=said.get("email_verified") in (True, "true"),
        username=_text(said.get("preferred_username")),
        groups=_texts(find_claim(said, groups_claim)),
        methods=_texts(said.get("amr")),
        authenticated_at=float(auth_time) if isinstance(auth_time, int | float) else None,
        id_token=id_token,
    )


def find_claim(said: Mapping[str, object], name: str) -> object:
    """By its whole name, which may have dots in it; else `a.b` is the member `b` of the claim `a`."""
    if name in said:
        return said[name]
    found: object = said
    for part in name.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(part)
    return found


def suggest_usernames(identity: Identity) -> Iterator[str]:
    """Good user names for this person, the best first: who takes the first that is free has one."""
    plain = _plain_name(identity.username) or _plain_name(identity.email) or "user"
    for number in range(1, _MOST_NUMBERED + 1):
        # A name that may not be anybody's, such as `admin`, may have a number.
        name = plain if number == 1 else f"{plain}-{number}"
        if _is_good(name):
            yield name


def _plain_name(text: str | None) -> str:
    """``Zoë Müller@example.org`` -> ``Zoe-Muller``; empty where too little is left."""
    local = (text or "").partition("@")[0]
    ascii_only = unicodedata.normalize("NFKD", local).encode("ascii", "ignore").decode()
    name = _UNFIT.sub("-", ascii_only).strip("-._")[:_LONGEST_NAME]
    return name if len(name) >= _SHORTEST_NAME else ""


def _is_good(name: str) -> bool:
    try:
        name_rules.check_username(name)
    except errors.CallerError:
        return False
    return True


def _text(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()
