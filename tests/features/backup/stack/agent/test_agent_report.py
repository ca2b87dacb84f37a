"""The agent's reports to auth."""

from datetime import timedelta

import msgspec

from features.backup.contract import MAX_BACKUPS, BackupEntry, BackupReport, RestoreTest
from features.backup.stack.agent import agent_report
from features.backup.stack.catalog import StoreCatalog
from features.backup.stack.layout import BackupPart
from features.backup.stack.restoring.restore_plan import RecoveryWindow
from features.backup.stack.site_term import SiteRecord
from tests.features.backup.stack.catalogs import backup, catalog, moment, passed

OWN = SiteRecord(term=1, site="here", at=moment(0), nonce="a")
OTHER = SiteRecord(term=2, site="there", at=moment(9), nonce="b")
WINDOW = RecoveryWindow(moment(1), moment(5), ())


def describe(found: StoreCatalog | None, replaced_by: SiteRecord | None = None) -> BackupReport:
    return checked(agent_report.describe(found, None if found is None else WINDOW, OWN, replaced_by))


def checked(report: BackupReport) -> BackupReport:
    """Decode the report as auth does, which checks bounds."""
    return msgspec.json.decode(msgspec.json.encode(report), type=BackupReport)


def test_everything_that_is_known_is_reported() -> None:
    part = BackupPart(name="data", size=5, sha256="", plain_size=9)
    made = msgspec.structs.replace(backup(1), parts=(part, part), label="before the move")
    report = describe(catalog([made], tests=passed(made, at=moment(2))))
    entry = BackupEntry(
        name=made.name, at=made.finished_at, label="before the move", size_bytes=10, verified_at=moment(2), seconds=60, site="here"
    )
    assert report.backups == (entry,)
    assert (report.recoverable_from, report.recoverable_until) == (moment(1), moment(5))
    assert report.last_test == RestoreTest(at=moment(2), ok=True, seconds=1, why="")
    assert (report.site, report.term, report.replaced_by) == ("here", 1, None)


def test_a_report_can_be_made_before_the_store_was_read() -> None:
    report = describe(None)
    assert (report.backups, report.last_test, report.recoverable_until) == ((), None, None)


def test_a_report_is_bounded_and_begins_with_the_newest() -> None:
    failed = msgspec.structs.replace(passed(ok=False), why="x" * 5000)
    report = describe(catalog([backup(hour) for hour in range(MAX_BACKUPS + 5)], tests=failed))
    assert len(report.backups) == MAX_BACKUPS
    assert report.backups[0].at - report.backups[-1].at == timedelta(hours=MAX_BACKUPS - 1)
    assert report.last_test is not None
    assert len(report.last_test.why) == 1000


def test_a_replaced_site_says_by_whom() -> None:
    report = describe(catalog([]), OTHER)
    assert report.replaced_by is not None
    assert (report.replaced_by.site, report.replaced_by.term) == ("there", 2)
