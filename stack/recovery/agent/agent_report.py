"""Describes the store and its sites for the agent's report to auth. Pure."""

from collections.abc import Iterable

from shared.api.recovery import MOST_BACKUPS, MOST_SITES, BackupReport, RestoreTest, SiteTerm
from stack.recovery import backup_listing
from stack.recovery.catalog import StoreCatalog
from stack.recovery.restoring.restore_plan import RecoveryWindow
from stack.recovery.sites.site_terms import SiteRecord, SiteState

_MOST_TEXT = 1000


def describe(catalog: StoreCatalog | None, window: RecoveryWindow | None, site: SiteState, sites: Iterable[SiteRecord]) -> BackupReport:
    """``catalog`` is None before the store was read. The caller adds what changes every second."""
    tests = None if catalog is None else catalog.tests
    return BackupReport(
        site=site.own.site,
        term=site.own.term,
        to="",
        recoverable_from=None if window is None else window.first,
        recoverable_until=None if window is None else window.last,
        backups=() if catalog is None else backup_listing.list_entries(catalog)[:MOST_BACKUPS],
        last_test=None if tests is None else RestoreTest(at=tests.at, ok=tests.ok, seconds=tests.seconds, why=tests.why[:_MOST_TEXT]),
        replaced_by=None if site.replaced_by is None else _site(site.replaced_by),
        sites=tuple(map(_site, sorted(sites, key=lambda record: record.term)[-MOST_SITES:])),
        lease=site.mode,
    )


def _site(record: SiteRecord) -> SiteTerm:
    return SiteTerm(site=record.site, term=record.term, at=record.at, url=record.url)
