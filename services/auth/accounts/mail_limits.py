"""How often mail to set a new password may be asked for."""

from services.auth.sessions.hourly_limits import HourlyLimits
from shared import errors
from shared.stores.cache import Cache
from shared.types import UserId

FOR_AN_ACCOUNT = 3
#: Of one address, whoever it asks for.
FOR_AN_ADDRESS = 10


class MailLimits:
    """Every method may raise Unavailable."""

    def __init__(self, cache: Cache) -> None:
        self._asked = HourlyLimits(cache, "reset_mails")

    async def charge_address(self, asker: str) -> None:
        """Raises Limited, which says nothing of any account."""
        wait_seconds = await self._asked.count(f"from:{asker}", FOR_AN_ADDRESS)
        if wait_seconds:
            raise errors.Limited(
                "too many new passwords were asked for from your address",
                hint=f"wait; {FOR_AN_ADDRESS} in an hour are allowed",
                retry_after_seconds=wait_seconds,
            )

    async def may_mail(self, user_id: UserId) -> bool:
        """Counts it, where it may. No error: it would tell that there is such an account."""
        return not await self._asked.count(f"to:{user_id}", FOR_AN_ACCOUNT)
