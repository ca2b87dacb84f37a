"""Which of the remembered alerts have to be written. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from services.metrics.alarms.desk import Remembered

#: An alert and when it began: the same alert may have come before.
Key: TypeAlias = tuple[str, float]
Written: TypeAlias = Mapping[Key, Remembered]


@dataclass(frozen=True, slots=True)
class Changes:
    write: tuple[Remembered, ...]
    delete: tuple[Key, ...]

    def __bool__(self) -> bool:
        return bool(self.write or self.delete)


def keyed(remembered: Iterable[Remembered]) -> dict[Key, Remembered]:
    return {(one.alarm.id, one.alarm.since): one for one in remembered}


def settled(remembered: Iterable[Remembered], written: Written, *, is_all_taken: bool) -> dict[Key, Remembered]:
    """What is to be written of them. While news wait for somebody to take them nobody was told of anything more than is written:
    a restart loses those news, so they have to be told again."""
    if is_all_taken:
        return keyed(remembered)
    told = {key for key, one in written.items() if one.told}
    lasting = {one.alarm.id for one in written.values() if one.told and one.alarm.ended is None}
    return {
        key: replace(one, told=key in told or (one.alarm.ended is None and one.alarm.id in lasting))
        for key, one in keyed(remembered).items()
    }


def find(before: Written, after: Written) -> Changes:
    """The value of an alert that lasts is another one at each look, and seen again at the next: it alone is no change."""
    write = tuple(one for key, one in after.items() if key not in before or _kept(before[key]) != _kept(one))
    return Changes(write, tuple(key for key in before if key not in after))


def _kept(one: Remembered) -> Remembered:
    return one if one.alarm.ended is not None else replace(one, alarm=replace(one.alarm, value=0.0), held_at=0.0)
