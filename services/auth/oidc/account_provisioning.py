"""Turn the provider's claims into an account: read the identity, map groups to a role, then find, link or create the account.

An account belongs to the person who knows its password. A matching email address from the provider does not open it: its owner logs in
once and links the two.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, assert_never

from services.auth import name_rules
from shared import errors
from shared.types import UserId, UserRole

#: Most powerful first.
BY_POWER = (UserRole.ADMIN, UserRole.DEVELOPER, UserRole.NODE_OWNER, UserRole.USER)

_MIN_NAME_LENGTH = 3
#: A user name has at most 50 characters; this leaves room for a number.
_MAX_NAME_LENGTH = 44
_INVALID_CHARACTERS = re.compile(r"[^A-Za-z0-9_.-]+")
#: Beyond this an administrator has to choose a name.
_MAX_NUMBERED_NAMES = 1000
#: Each retry means that a concurrent login took the identity, the name or the address first.
_MAX_TRIES = 3


@dataclass(frozen=True, slots=True)
class Identity:
    """A person as the provider vouches for them. Only ``(issuer, subject)`` identifies them; everything else may change."""

    issuer: str
    subject: str
    email: str | None = None
    email_verified: bool = False
    username: str | None = None
    groups: tuple[str, ...] = ()
    #: How they authenticated there, in the words of RFC 8176: `pwd`, `otp`, `mfa` …
    methods: tuple[str, ...] = ()
    #: When they did, in seconds since 1970.
    authenticated_at: float | None = None
    #: For logging out at the provider.
    id_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class RoleTable:
    """The role of each group. If it is empty, the provider has no influence on roles."""

    roles: Mapping[str, UserRole] = field(default_factory=dict)

    def role_of(self, groups: tuple[str, ...]) -> UserRole | None:
        """Return the most powerful role of the groups, USER without a match, or None if the table is empty."""
        if not self.roles:
            return None
        given = {self.roles[group] for group in groups if group in self.roles}
        return next((role for role in BY_POWER if role in given), UserRole.USER)


@dataclass(frozen=True, slots=True)
class FoundAccounts:
    #: The account linked to this (issuer, subject).
    known: UserId | None = None
    #: The account with the same email address.
    same_email: UserId | None = None


@dataclass(frozen=True, slots=True)
class LogInToAccount:
    user_id: UserId
    #: None leaves it unchanged.
    role: UserRole | None


@dataclass(frozen=True, slots=True)
class LinkAccount:
    """Link the identity to the account of the logged-in user."""

    user_id: UserId
    role: UserRole | None


@dataclass(frozen=True, slots=True)
class CreateAccount:
    email: str
    role: UserRole


class NameTaken(Enum):
    """What already exists, so that no account was created."""

    USERNAME = "username"
    EMAIL = "email"
    IDENTITY = "identity"


class IdentityStore(Protocol):
    """The tables of users and identities. Every method may raise Unavailable."""

    async def find(self, identity: Identity) -> FoundAccounts: ...

    async def add(self, username: str, email: str, role: UserRole, identity: Identity) -> UserId | NameTaken:
        """Add a user without a password together with the identity, or neither."""

    async def link(self, user_id: UserId, identity: Identity) -> bool:
        """Return False if the identity is already linked, even to this user."""

    async def note_login(self, user_id: UserId, identity: Identity, role: UserRole | None) -> None:
        """Record the login and set the role, if there is one. The last administrator keeps their role."""


@dataclass(frozen=True, slots=True)
class ProvisionedAccount:
    user_id: UserId
    is_new: bool = False


def read_identity(issuer: str, subject: str, claims: Mapping[str, object], groups_claim: str, id_token: str = "") -> Identity:
    """Read the claims of the ID token and the userinfo; ignore malformed ones."""
    auth_time = claims.get("auth_time")
    return Identity(
        issuer=issuer,
        subject=subject,
        email=_text(claims.get("email")),
        # Some providers send it as a string.
        email_verified=claims.get("email_verified") in (True, "true"),
        username=_text(claims.get("preferred_username")),
        groups=_texts(find_claim(claims, groups_claim)),
        methods=_texts(claims.get("amr")),
        authenticated_at=float(auth_time) if isinstance(auth_time, int | float) else None,
        id_token=id_token,
    )


def find_claim(claims: Mapping[str, object], name: str) -> object:
    """Look up a claim by its full name, which may contain dots, then as a path: `a.b` is the member `b` of the claim `a`."""
    if name in claims:
        return claims[name]
    found: object = claims
    for part in name.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(part)
    return found


def suggest_usernames(identity: Identity) -> Iterator[str]:
    """Yield valid user names for this person, the best first."""
    base = _clean_name(identity.username) or _clean_name(identity.email) or "user"
    for number in range(1, _MAX_NUMBERED_NAMES + 1):
        # A reserved name such as `admin` is allowed with a number.
        name = base if number == 1 else f"{base}-{number}"
        if _is_valid(name):
            yield name


def decide_account(
    identity: Identity, link_to: UserId | None, found: FoundAccounts, table: RoleTable
) -> LogInToAccount | LinkAccount | CreateAccount:
    """Raises AlreadyExists if an account is in the way, and BadRequest if the claims are not enough for a new one."""
    role = table.role_of(identity.groups)
    if found.known is not None:
        if link_to not in (None, found.known):
            raise errors.AlreadyExists(
                "this login at the provider belongs to another account here", hint="log in with it, and remove the link in the settings"
            )
        return LogInToAccount(found.known, role)
    if link_to is not None:
        return LinkAccount(link_to, role)
    if found.same_email is not None:
        raise errors.AlreadyExists(
            "there is an account with your email address", hint="log in with its password, then link the provider in the settings"
        )
    if identity.email is None:
        raise errors.BadRequest(
            "the login provider does not share your email address", hint="an administrator: add the scope email to OIDC_SCOPES"
        )
    name_rules.check_email(identity.email)
    return CreateAccount(identity.email, role or UserRole.USER)


async def provision_account(identity: Identity, link_to: UserId | None, store: IdentityStore, table: RoleTable) -> ProvisionedAccount:
    """Return the account of this identity. The caller must check that the account is active.

    Raises what ``decide_account`` raises, and Unavailable if concurrent logins keep interfering.
    """
    for _ in range(_MAX_TRIES):
        match decide_account(identity, link_to, await store.find(identity), table):
            case LogInToAccount(user_id, role):
                await store.note_login(user_id, identity, role)
                return ProvisionedAccount(user_id)
            case LinkAccount(user_id, role):
                if await store.link(user_id, identity):
                    await store.note_login(user_id, identity, role)
                    return ProvisionedAccount(user_id)
            case CreateAccount() as create:
                if (created := await _create(create, identity, store)) is not None:
                    return ProvisionedAccount(created, is_new=True)
            case impossible:
                assert_never(impossible)
    raise errors.Unavailable("this login at the provider is being used elsewhere at the same time", hint="start the login again")


async def _create(create: CreateAccount, identity: Identity, store: IdentityStore) -> UserId | None:
    """Return None if a concurrent login took the identity or the address: the caller must decide again."""
    for username in suggest_usernames(identity):
        created = await store.add(username, create.email, create.role, identity)
        if created in (NameTaken.EMAIL, NameTaken.IDENTITY):
            return None
        if not isinstance(created, NameTaken):
            return created
    raise errors.AlreadyExists("every user name like yours is taken", hint="ask an administrator to register you under another one")


def _clean_name(text: str | None) -> str:
    """``Zoë Müller@example.org`` -> ``Zoe-Muller``; empty if too little is left."""
    local = (text or "").partition("@")[0]
    ascii_only = unicodedata.normalize("NFKD", local).encode("ascii", "ignore").decode()
    name = _INVALID_CHARACTERS.sub("-", ascii_only).strip("-._")[:_MAX_NAME_LENGTH]
    return name if len(name) >= _MIN_NAME_LENGTH else ""


def _is_valid(name: str) -> bool:
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
