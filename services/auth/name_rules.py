"""Check user names, addresses and key names, and the models and networks that a key can be bound to. Pure; raises BadRequest with the
broken rule."""

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from uuid import UUID

from shared import errors
from shared.mail import letters
from shared.types import ModelName

#: auth creates it at its first start; nobody else can.
ADMIN_USERNAME = "admin"
ADMIN_EMAIL = "admin@localhost"

_USERNAME = re.compile(r"[A-Za-z0-9_.-]{3,50}")
_MAX_KEY_NAME = 100
_MAX_MODEL_NAME = 200
#: Each is compared at every request with the key.
_MAX_MODELS, _MAX_NETWORKS = 100, 20


def check_username(username: str) -> None:
    if not may_be_username(username):
        raise errors.BadRequest.of("username", "3 to 50 letters, digits, `_`, `.` or `-`, without accents", hint="choose another user name")
    if find_uuid(username) is not None:
        raise errors.BadRequest.of("username", "it must not look like a user id", hint="choose another user name")
    if username.lower() == ADMIN_USERNAME:
        raise errors.AlreadyExists(f"the user name {ADMIN_USERNAME} is reserved", hint="choose another user name")


def check_email(email: str) -> None:
    if not letters.may_be_email(email):
        most = letters.MAX_ADDRESS
        raise errors.BadRequest.of("email", f"an address such as you@example.com, at most {most} characters", hint="check the address")
    if email.lower() == ADMIN_EMAIL:
        raise errors.AlreadyExists(f"the address {ADMIN_EMAIL} is reserved", hint="choose another address")


def check_key_name(name: str) -> None:
    if not may_be_key_name(name):
        raise errors.BadRequest.of(
            "name", f"1 to {_MAX_KEY_NAME} printable characters", hint="choose a name that tells you what the key is for"
        )


def models_of(names: Iterable[str]) -> tuple[ModelName, ...]:
    """Remove duplicates; keep the order."""
    models = tuple(dict.fromkeys(ModelName(name) for name in names))
    if len(models) > _MAX_MODELS:
        raise errors.BadRequest.of("models", f"at most {_MAX_MODELS}", hint="leave it out to allow every model")
    if not all(model.strip() and len(model) <= _MAX_MODEL_NAME and model.isprintable() for model in models):
        raise errors.BadRequest.of(
            "models", f"each name must have 1 to {_MAX_MODEL_NAME} printable characters", hint="`aicli models list` shows them"
        )
    return models


def networks_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Remove duplicates, keep the order, and normalize to the form that addresses are compared with."""
    networks = tuple(dict.fromkeys(_network(text) for text in texts))
    if len(networks) > _MAX_NETWORKS:
        raise errors.BadRequest.of("networks", f"at most {_MAX_NETWORKS}", hint="merge adjacent ones")
    return networks


def _network(text: str) -> str:
    try:
        # A zone (`fe80::1%eth0`) names a link of this machine only.
        found = None if "%" in text else ip_network(text.strip(), strict=False)
    except ValueError:
        found = None
    if found is None:
        raise errors.BadRequest.of(
            "networks", f"{text[:60]!r} is not a network", hint="write 192.0.2.0/24, 2001:db8::/32 or a single address"
        )
    return str(as_compared(found))


def as_compared(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Return IPv4-mapped IPv6 (`::ffff:192.0.2.0/120`) as IPv4, as requests' addresses are."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if mapped is None or network.prefixlen < 96 else IPv4Network((mapped, network.prefixlen - 96))


def may_be_username(text: str) -> bool:
    return _USERNAME.fullmatch(text) is not None


def may_be_key_name(text: str) -> bool:
    return bool(text.strip()) and len(text) <= _MAX_KEY_NAME and text.isprintable()


def find_uuid(text: str) -> UUID | None:
    """Parse an id as we write ids, or without its dashes."""
    try:
        found = UUID(text)
    except ValueError:
        return None
    return found if text.lower() in (str(found), found.hex) else None
