"""Which home owns the mesh: the one with the highest term in the backup store. A restored home takes the next term, and the home that it
replaces stops and does not start again, so two ledgers never run.
"""

import asyncio
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from features.backup.stack import catalog, layout
from features.backup.stack.backup_place import BackupPlace
from features.backup.stack.layout import RestoreRefused, StoreMesh
from shared import errors
from shared.identity.node_keys import NodeKey
from shared.stores.objects import ObjectStore, StoreUnavailable
from shared.types import Moment
from stack import stack_home
from stack.servers.postgres import Postgres
from stack.stack_home import StackHome

_FOLDER = "site/"
_RECORD = re.compile(r"site/([1-9][0-9]*)\.json")


class SiteRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who owns a term. Written once, if absent."""

    term: int
    site: str
    at: Moment
    #: Random: tells the attempts of two sites with the same name apart.
    nonce: str

    def replaces(self, own: "SiteRecord") -> bool:
        return self.term >= own.term and self.nonce != own.nonce


def new_record(term: int, site: str) -> SiteRecord:
    return SiteRecord(term=term, site=site, at=datetime.now(UTC), nonce=secrets.token_hex(16))


def record_name(term: int) -> str:
    return f"{_FOLDER}{term}.json"


async def find_highest(store: ObjectStore, mesh: StoreMesh) -> SiteRecord | None:
    """Raises StoreUnavailable."""
    terms = [int(found[1]) async for each in store.list(_FOLDER) if (found := _RECORD.fullmatch(each.name))]
    return await catalog.get_signed(store, mesh, record_name(max(terms)), SiteRecord) if terms else None


async def take(store: ObjectStore, mesh: StoreMesh, key: NodeKey, record: SiteRecord) -> None:
    """Safe to repeat: whatever the store has replied, only what it has counts. Raises RestoreRefused if another home has this term or a
    later one, and StoreUnavailable."""
    highest = await find_highest(store, mesh)
    if highest is None or highest.term < record.term:
        await store.put_if_absent(record_name(record.term), layout.sign(record_name(record.term), record, key))
        highest = await find_highest(store, mesh)
    if highest is None or highest.term < record.term:
        raise StoreUnavailable(f"the store confirmed {record_name(record.term)} but does not have it", hint="run it again")
    if highest.nonce != record.nonce:
        raise RestoreRefused(
            f"the site {highest.site} has taken term {highest.term} meanwhile",
            hint="only one site may own the mesh; to restore here all the same: aicli stack restore --abort, then restore again",
        )


def read_own(home: StackHome) -> SiteRecord | None:
    """Blocks. Raises BadSettings."""
    return stack_home.read_struct(home.own_site, SiteRecord, "restore this home again: aicli stack restore latest --replace")


async def ensure_own(place: BackupPlace) -> SiteRecord:
    """Return the term of this home. The first home of a store takes the first one. Raises BadSettings if another home owns the mesh."""
    own = await asyncio.to_thread(read_own, place.home)
    if own is None:
        if (other := await find_highest(place.store, place.mesh)) is not None:
            raise errors.BadSettings(
                f"the store belongs to the site {other.site} (term {other.term}), and this home has no term",
                hint="restore it (aicli stack restore), or set BACKUP_TO to an empty place",
            )
        # Saved before it is put, so that a crash in between does not lose the race against itself.
        own = new_record(1, place.settings.site)
        await asyncio.to_thread(stack_home.write_struct, place.home.own_site, own)
    if own.term == 1:
        await place.store.put_if_absent(record_name(1), layout.sign(record_name(1), own, place.key))
    return own


async def read_confirmed(place: BackupPlace) -> SiteRecord:
    """Return the term that the store has for this home. Raises BadSettings if it has none or another home has a later one."""
    own, highest = await asyncio.to_thread(read_own, place.home), await find_highest(place.store, place.mesh)
    if own is None:
        raise errors.BadSettings("the backup agent has not taken this site's term yet", hint="is it running? aicli stack logs backup")
    if highest is not None and highest.replaces(own):
        raise errors.BadSettings(
            f"{highest.site} has taken over (term {highest.term}, and this one has {own.term})", hint="make the backup there"
        )
    return own


def _replaced(home: StackHome) -> Path:
    return home.run / "replaced.json"


def record_replaced(home: StackHome, by: SiteRecord) -> None:
    stack_home.write_struct(_replaced(home), by)


def ensure_not_replaced(home: StackHome) -> None:
    """Raises BadSettings if another home has taken over."""
    by = stack_home.read_struct(_replaced(home), SiteRecord, "another site may have taken over; see docs/howto/recovery.md")
    if by is not None:
        raise errors.BadSettings(
            f"this site was replaced by {by.site} at {by.at:%Y-%m-%d %H:%M:%S} UTC",
            hint="to bring it back, stop the other site, then restore here: aicli stack restore latest --replace --identity FILE",
        )


def ensure_not_lost(server: Postgres, backed_up: Path) -> None:
    """Raises BadSettings if there is no database, but ``backed_up``, a file that only a home with backups has: an empty one would hide that
    it is lost."""
    if backed_up.exists() and not (server.data / "PG_VERSION").exists():
        raise errors.BadSettings(
            f"the database in {server.folder} is gone, and there are backups of it",
            hint="restore it: aicli stack restore latest --replace --identity FILE; "
            f"to begin with an empty one, remove {backed_up} and set BACKUP_TO to an empty place",
        )
