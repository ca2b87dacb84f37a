"""How long auth stores what, in one table, and the job that removes older rows in batches."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.auth.privacy.privacy_store import PrivacyStore
from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems
from shared.node import lifecycle
from shared.telemetry import logs

#: Rows per statement: locks last milliseconds, and caches are notified of few keys at once.
BATCH = 500
#: Per rule and round.
_MAX_BATCHES = 200
_EVERY_SECONDS = 3600

_log = logs.get(part="privacy")

#: Removes up to so many rows that ended before this time; returns how many.
Forget = Callable[[datetime, int], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class RetentionRule:
    name: str
    #: How long its rows are stored after their end.
    days: int
    forget: Forget


def own(store: PrivacyStore, *, invitation_days: int = 90, ticket_days: int = 90, ended_key_days: int = 365) -> tuple[RetentionRule, ...]:
    """The rules of auth's own tables except the audit log. Sessions and login counters expire in Valkey."""

    def by(query: str) -> Forget:
        return lambda before, most: store.forget(query, before, most)

    return (
        RetentionRule("password_resets", 1, by("forget_resets")),
        RetentionRule("former_secrets", 1, by("forget_former_hashes")),
        RetentionRule("invitations", invitation_days, by("forget_invitations")),
        RetentionRule("colleague_invitations", invitation_days, by("forget_colleague_invitations")),
        RetentionRule("tickets", ticket_days, by("forget_tickets")),
        RetentionRule("notices", 30, by("forget_notices")),
        RetentionRule("ended_keys", ended_key_days, by("forget_ended_keys")),
    )


class Retention:
    """``run`` is the task. Any number of replicas may run it; each takes rows that no other has locked."""

    def __init__(
        self, rules: tuple[RetentionRule, ...], items: BackgroundItems, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._rules = rules
        self._items = items
        self._clock = clock

    async def run(self) -> None:
        """Run until canceled."""
        await lifecycle.every(_EVERY_SECONDS, self.enforce, first=lifecycle.SOON_SECONDS)

    async def enforce(self) -> None:
        """Apply every rule once. Raises Unavailable; what was removed stays removed."""
        await self._items.each(ItemKind.RETENTION, self._rules, self._apply, lambda rule: rule.name)

    async def _apply(self, rule: RetentionRule) -> None:
        if rows := await self._forget(rule):
            _log.info("old data removed", what=rule.name, rows=rows, days=rule.days)

    async def _forget(self, rule: RetentionRule) -> int:
        before = self._clock() - timedelta(days=rule.days)
        rows = 0
        for _ in range(_MAX_BATCHES):
            found = await rule.forget(before, BATCH)
            rows += found
            if found < BATCH:
                break
        return rows
