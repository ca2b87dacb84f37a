"""Describes the store and its sites for the agent's report to auth. Pure."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from shared.api.recovery import MOST_BACKUPS, MOST_SITES, BackupEntry, BackupReport, RestoreTest, SiteLeaseMode, SiteTerm
from stack.recovery.catalog import StoreCatalog
from stack.recovery.layout import BackupManifest
from stack.recovery.restoring.restore_plan import RecoveryWindow
from stack.recovery.sites.site_terms import SiteRecord, SiteState

_MOST_TEXT = 1000


def describe(catalog: StoreCatalog | None, window: RecoveryWindow | None, site: SiteState, sites: Iterable[SiteRecord]) -> BackupReport:
    """``catalog`` is None before the store was read. The caller adds what changes every second."""
    backups = () if catalog is None else catalog.backups
    tests = None if catalog is None else catalog.tests
    passed = {} if tests is None else tests.passed
    return BackupReport(
        site=site.own.site,
        term=site.own.term,
        to="",
        recoverable_from=None if window is None else window.first,
        recoverable_until=None if window is None else window.last,
        backups=tuple(_entry(backup, passed) for backup in reversed(backups[-MOST_BACKUPS:])),
        last_test=None if tests is None else RestoreTest(at=tests.at, ok=tests.ok, seconds=tests.seconds, why=tests.why[:_MOST_TEXT]),
        replaced_by=None if site.replaced_by is None else _site(site.replaced_by),
        sites=tuple(map(_site, sorted(sites, key=lambda record: record.term)[-MOST_SITES:])),
        lease=SiteLeaseMode(site.mode),
    )


def _entry(backup: BackupManifest, passed: Mapping[str, datetime]) -> BackupEntry:
    return BackupEntry(
        name=backup.name, at=backup.finished_at, label=backup.label, size_bytes=backup.size, verified_at=passed.get(backup.name),
        seconds=backup.seconds,
    )  # fmt: skip


def _site(record: SiteRecord) -> SiteTerm:
    return SiteTerm(site=record.site, term=record.term, at=record.at, url=record.url)
