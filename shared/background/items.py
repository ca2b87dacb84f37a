"""Works on items so that one that fails ends nothing: it is logged, counted, and put aside for a pause that grows.

This is the only place that catches an exception of an item. A peer that does not answer is not the item's fault: that ends the round, and
the next round tries again.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from shared import errors
from shared.background import failure_texts
from shared.background.item_kinds import ALL, COUNTED_ELSEWHERE, MONEY
from shared.telemetry import Metrics, logs

T = TypeVar("T")

#: After so many tries an item rests until somebody retries it.
MAX_TRIES = 10
#: If so many items in a row need a peer that does not answer, so do the others.
_MAX_AWAY = 3
#: Ids come from providers, too.
_MAX_ID_LETTERS = 200

_log = logs.get(part="items")


class DeferredItems(Protocol):
    """What was put aside. Every method may raise Unavailable."""

    async def find_waiting(self, kind: str, ids: Sequence[str]) -> tuple[set[str], set[str]]:
        """Return those of the items that must wait, and those that were put aside and are due, which this caller now has for a while."""
        ...

    async def take_due(self, kind: str) -> str | None:
        """Return an item that was put aside and is due, which this caller now has for a while."""
        ...

    async def defer(self, kind: str, item_id: str, error: str, max_tries: int) -> int:
        """Put an item aside; return how often it has failed."""
        ...

    async def forget(self, kind: str, ids: Sequence[str]) -> None:
        """The items have succeeded."""
        ...

    async def count_stuck(self, money: Sequence[str]) -> dict[str, int]:
        """Count the items that rest, and all of these kinds, by kind."""
        ...


@dataclass(slots=True)
class TakenItem:
    """What a step of ``drain`` has taken. It sets ``id`` as soon as it knows; a failure before that is the round's."""

    id: str | None = None


class BackgroundItems:
    """The items of one service."""

    def __init__(self, deferred: DeferredItems, metrics: Metrics) -> None:
        self._deferred = deferred
        self._metrics = metrics

    async def each(self, kind: str, items: Iterable[T], handle: Callable[[T], Awaitable[object]], key: Callable[[T], str]) -> None:
        """Handle the items one after the other, except those that wait after a failure. Raises Unavailable if the table can't be read, and
        what says that a peer is away."""
        named = [(key(item)[:_MAX_ID_LETTERS], item) for item in items]
        if not named:
            return
        waiting, retried = set[str](), set[str]()
        if kind not in COUNTED_ELSEWHERE:
            waiting, retried = await self._deferred.find_waiting(kind, [item_id for item_id, _ in named])
        away: list[errors.AimeshError] = []
        for item_id, item in named:
            if item_id in waiting:
                continue
            try:
                is_done = await self._try(kind, item_id, handle(item))
            except errors.AimeshError as error:
                away.append(error)
                if len(away) == _MAX_AWAY:
                    break
                continue
            if is_done and item_id in retried:
                await self._deferred.forget(kind, [item_id])
        if away:
            raise away[0]

    async def drain(self, kind: str, take: Callable[[TakenItem], Awaitable[bool]]) -> None:
        """Repeat ``take``, which takes and handles an item, until it returns False: there is none. Its query leaves out what is put aside
        (``is_deferred``)."""
        more = True
        while more:
            taken = TakenItem()
            try:
                more = await take(taken)
            except Exception as error:
                if taken.id is None or _is_away(error):
                    raise
                await self._put_aside(kind, taken.id, error)
            else:
                if taken.id is not None:
                    await self._deferred.forget(kind, [taken.id[:_MAX_ID_LETTERS]])

    async def take_due(self, kind: str) -> str | None:
        """Return the id of an item that was put aside and is due, for work whose own table would offer it only much later. Follow with
        ``attempt``."""
        return await self._deferred.take_due(kind)

    async def attempt(self, kind: str, item_id: str, work: Awaitable[object]) -> bool:
        """Return whether the work on one item succeeded. Raises what says that a peer is away."""
        is_done = await self._try(kind, item_id, work)
        if is_done and kind not in COUNTED_ELSEWHERE:
            await self._deferred.forget(kind, [item_id[:_MAX_ID_LETTERS]])
        return is_done

    async def _try(self, kind: str, item_id: str, work: Awaitable[object]) -> bool:
        try:
            await work
        except Exception as error:
            if _is_away(error):
                raise
            await self._put_aside(kind, item_id, error)
            return False
        return True

    async def _put_aside(self, kind: str, item_id: str, error: Exception) -> None:
        item_id, reason = item_id[:_MAX_ID_LETTERS], failure_texts.describe(error)
        self._metrics.item_failures.labels(str(kind)).inc()
        if kind in COUNTED_ELSEWHERE:
            _log.error("an item failed", kind=str(kind), item=item_id, reason=reason)
            return
        tries = await self._deferred.defer(kind, item_id, reason, MAX_TRIES)
        rests = tries >= MAX_TRIES
        _log.error("an item failed and was put aside", kind=str(kind), item=item_id, reason=reason, tries=tries, rests=rests)

    async def measure(self) -> None:
        """Show how many items wait for an administrator. Raises Unavailable."""
        counts = await self._deferred.count_stuck([*MONEY])
        for kind in ALL:
            self._metrics.deferred_items.labels(str(kind)).set(counts.get(kind, 0))


def _is_away(error: Exception) -> bool:
    return isinstance(error, errors.AimeshError) and error.retryable
