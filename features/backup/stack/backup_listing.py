"""What `aicli stack backups` lists."""

import msgspec

from features.backup.contract import BackupEntry
from features.backup.stack import catalog
from features.backup.stack.backup_place import BackupPlace
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.layout import DATA
from features.backup.stack.restoring import restore_plan
from features.backup.stack.restoring.recovered_database import RestoreSource
from features.backup.stack.restoring.restore_plan import RecoveryHole
from features.backup.stack.store_retries import retry
from shared.types import Moment


class BackupListing(msgspec.Struct, frozen=True, kw_only=True):
    #: Newest first.
    backups: tuple[BackupEntry, ...]
    recoverable_from: Moment | None = None
    recoverable_until: Moment | None = None
    holes: tuple[RecoveryHole, ...] = ()


def list_entries(found: StoreCatalog) -> tuple[BackupEntry, ...]:
    """Newest first. Pure."""
    passed = found.tests.passed if found.tests is not None else {}
    return tuple(
        BackupEntry(
            name=each.name, label=each.label, at=each.finished_at, size_bytes=each.size,
            verified_at=passed.get(each.name), seconds=each.seconds, site=each.site,
        )
        for each in reversed(found.backups)
    )  # fmt: skip


async def read(place: BackupPlace) -> BackupListing:
    found = await retry(lambda: catalog.read(place.store, place.mesh))
    listed = list_entries(found)
    if not any(part.name == DATA for each in found.backups for part in each.parts):
        return BackupListing(backups=listed)  # its provider restores the database
    source = RestoreSource(place.store, place.mesh, (place.own_identity,))
    histories = await retry(lambda: source.histories(found.histories))
    window = restore_plan.window(found, histories)
    if window is None:
        return BackupListing(backups=listed)
    return BackupListing(backups=listed, recoverable_from=window.first, recoverable_until=window.last, holes=window.holes)
