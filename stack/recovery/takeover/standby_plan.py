"""Where a standby is, and what it fetches next. Pure.

A standby gets the unfinished segment of the store under the name of the whole one. PostgreSQL reads it up to its valid end, and asks for
the same segment again, until it has grown.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime

import msgspec

from stack.recovery import layout
from stack.recovery.catalog import StoreCatalog
from stack.recovery.restoring import restore_plan
from stack.recovery.restoring.restore_plan import LATEST, RestorePlan, RestoreTarget, TimelineEnd

_STANDBY = re.compile(r"site/standby-(?P<site>[A-Za-z0-9._-]+)\.json")
_IN_RECOVERY = ("in archive recovery", "shut down in recovery")


class StandbyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a standby says about itself in the store, for the agent of the site that it follows."""

    site: str
    #: Every commit before this moment, by the clock of the database, and before this position is replayed. None before the first.
    until: datetime | None
    lsn: int


def record_name(site: str) -> str:
    return f"site/standby-{site}.json"


def is_record(name: str) -> bool:
    return _STANDBY.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class LogPosition:
    timeline: int
    lsn: int


@dataclass(frozen=True, slots=True)
class ControlFile:
    """What pg_controldata says about a stopped server."""

    #: Where its next start begins to read.
    redo: LogPosition
    is_in_recovery: bool


def parse_control(text: str) -> ControlFile:
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    position = LogPosition(int(facts["Latest checkpoint's TimeLineID"]), layout.parse_lsn(facts["Latest checkpoint's REDO location"]))
    return ControlFile(position, facts["Database cluster state"] in _IN_RECOVERY)


def plan(catalog: StoreCatalog, position: LogPosition, histories: dict[int, tuple[TimelineEnd, ...]]) -> RestorePlan:
    """Plan the way from ``position`` to the end of the newest timeline. Raises RestoreRefused if the store has none: the newest timeline
    began before it, or segments are missing."""
    if not catalog.backups:
        return restore_plan.plan(catalog, LATEST, RestoreTarget(), histories)
    # As from a backup that is consistent there; at the end of a segment, from that one, which is surely in the store.
    begin = max(1, position.lsn - 1)
    here = msgspec.structs.replace(catalog.backups[-1], timeline=position.timeline, start_lsn=begin, stop_lsn=position.lsn)
    found = restore_plan.plan(replace(catalog, backups=(here,)), LATEST, RestoreTarget(), histories)
    if found.gap is not None:
        raise layout.RestoreRefused(f"{found.gap.object(here.segment_size)} is missing", hint="a newer backup continues behind it")
    return found
