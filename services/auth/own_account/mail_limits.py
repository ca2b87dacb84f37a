"""How often mail to set a new password may be asked for, counted in Valkey for all replicas."""

import hashlib
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path

from shared import errors
from shared.cache import Cache
from shared.types import NodeId, UserId

FOR_AN_ACCOUNT = 3
#: Of one address, whoever it asks for.
FOR_AN_ADDRESS = 10
_WINDOW_SECONDS = 3600
_SCRIPT = "mail_limits"


class MailLimits:
    """Every method may raise Unavailable."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        cache.script(_SCRIPT, Path(__file__).with_name("mail_limits.lua").read_text(encoding="utf-8"))

    async def charge_address(self, asker: str) -> None:
        """Raises Limited, which says nothing of any account."""
        wait_ms = await self._count(f"from:{asker}", FOR_AN_ADDRESS)
        if wait_ms:
            raise errors.Limited(
                "too many new passwords were asked for from your address",
                hint=f"wait; {FOR_AN_ADDRESS} in an hour are allowed",
                retry_after_seconds=wait_ms / 1000,
            )

    async def may_mail(self, user_id: UserId) -> bool:
        """Counts it, where it may. No error: it would tell that there is such an account."""
        return not await self._count(f"to:{user_id}", FOR_AN_ACCOUNT)

    async def _count(self, whom: str, most: int) -> int:
        # Hashed, because an address is a person's.
        key = f"auth:reset_mails:{hashlib.sha256(whom.encode()).hexdigest()}"
        return int(await self._cache.run(_SCRIPT, [key], [most, _WINDOW_SECONDS * 1000]))


def asker_of(address: str, node: NodeId) -> str:
    """Who is counted: an address, for IPv6 the network that one household has; the calling node where it says no address."""
    try:
        found = ip_address(address)
    except ValueError:
        return str(node)
    if isinstance(found, IPv6Address) and found.ipv4_mapped is None:
        return str(ip_network((found, 64), strict=False))
    return str(getattr(found, "ipv4_mapped", None) or found)
