"""Describes the store for the agent's report to auth. Pure."""

from features.backup.contract import MAX_BACKUPS, BackupReport, RestoreTest, SiteTerm
from features.backup.stack import backup_listing
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.restoring.restore_plan import RecoveryWindow
from features.backup.stack.site_term import SiteRecord

_MAX_TEXT = 1000


def describe(catalog: StoreCatalog | None, window: RecoveryWindow | None, own: SiteRecord, replaced_by: SiteRecord | None) -> BackupReport:
    """``catalog`` is None before the store was read. The caller adds what changes every second."""
    tests = None if catalog is None else catalog.tests
    return BackupReport(
        site=own.site,
        term=own.term,
        to="",
        recoverable_from=None if window is None else window.first,
        recoverable_until=None if window is None else window.last,
        backups=() if catalog is None else backup_listing.list_entries(catalog)[:MAX_BACKUPS],
        last_test=None if tests is None else RestoreTest(at=tests.at, ok=tests.ok, seconds=tests.seconds, why=tests.why[:_MAX_TEXT]),
        replaced_by=None if replaced_by is None else SiteTerm(site=replaced_by.site, term=replaced_by.term, at=replaced_by.at),
    )
