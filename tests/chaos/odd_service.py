"""A service in which items of background work fail at random, as an odd one does.

python -m tests.chaos.odd_service gateway

It is services.gateway. While the file of ``ODD_ITEMS`` exists, each item fails with the probability ``SHARE``, before its work or after it,
and adds a line with its kind to the file.
"""

import asyncio
import os
import random
import runpy
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar, cast

from shared.background.item_kinds import ItemKind
from shared.background.items import BackgroundItems, TakenItem

T = TypeVar("T")

#: The variable that names the file.
ODD_ITEMS = "ODD_ITEMS_FILE"
SHARE = 0.1


class OddItemError(Exception):
    pass


class _OddTaken:
    """Stands for what a step has taken, and fails as soon as the step says what it is."""

    def __init__(self, taken: TakenItem, fail: Callable[[], None]) -> None:
        self.__dict__.update(taken=taken, fail=fail)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.__dict__["taken"], name, value)
        if value is not None:
            self.__dict__["fail"]()

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["taken"], name)


class _OddItems:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._attempt, self._drain = BackgroundItems._try, BackgroundItems.drain

    def throw_in(self) -> None:
        odd = self

        async def attempt(self: BackgroundItems, kind: ItemKind, item_id: str, work: Awaitable[object]) -> bool:
            return await odd._attempt(self, kind, item_id, odd._work(kind, work))

        async def drain(self: BackgroundItems, kind: ItemKind, take: Callable[[TakenItem], Awaitable[bool]]) -> None:
            def take_odd(taken: TakenItem) -> Awaitable[bool]:
                return take(cast("TakenItem", _OddTaken(taken, lambda: odd._may_fail(kind, SHARE))))

            await odd._drain(self, kind, take_odd)

        setattr(BackgroundItems, "_try", attempt)  # noqa: B010 - mypy rejects an assignment
        setattr(BackgroundItems, "drain", drain)  # noqa: B010

    async def _work(self, kind: ItemKind, work: Awaitable[T]) -> T:
        try:
            self._may_fail(kind, SHARE / 2)
        except OddItemError:
            if asyncio.iscoroutine(work):
                work.close()
            raise
        result = await work
        self._may_fail(kind, SHARE / 2)
        return result

    def _may_fail(self, kind: ItemKind, probability: float) -> None:
        if random.random() < probability and self._file.exists():
            with self._file.open("a", encoding="ascii") as file:
                file.write(f"{kind}\n")
            raise OddItemError(f"this {kind} is odd")


def throw_in_odd_items() -> None:
    if (file := os.environ.get(ODD_ITEMS)) is not None:
        _OddItems(Path(file)).throw_in()


if __name__ == "__main__":
    throw_in_odd_items()
    runpy.run_module(f"services.{sys.argv[1]}", run_name="__main__")
