"""auth: the backup agent reports here, and the Backups page and the CLI read it."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from shared.api.auth import PEOPLE
from shared.api.method import Body, Method, Nothing
from shared.types import Moment, Role

#: The newest backups in a report. The store may have more.
MAX_BACKUPS = 100
#: An agent that has not reported for so long is down: it does every 10 s.
AGENT_GONE_SECONDS = 120

_Name = Annotated[str, Meta(min_length=1, max_length=200)]
_Text = Annotated[str, Meta(max_length=1000)]
_Seconds = Annotated[float, Meta(ge=0)]
_Count = Annotated[int, Meta(ge=0)]
_Term = Annotated[int, Meta(ge=1)]


class BackupEntry(Body, frozen=True, kw_only=True):
    """A backup in the store."""

    name: _Name
    #: When it was complete.
    at: Moment
    label: _Text = ""
    size_bytes: _Count
    #: When a restore test of it last succeeded.
    verified_at: Moment | None = None
    #: How long it took.
    seconds: _Seconds
    #: Whose database it has.
    site: _Text = ""


class RestoreTest(Body, frozen=True, kw_only=True, omit_defaults=False):
    """The last restore test."""

    at: Moment
    ok: bool
    seconds: _Seconds
    #: Why it failed.
    why: _Text = ""


class SiteTerm(Body, frozen=True, kw_only=True):
    """The site that owns the mesh in this term."""

    site: _Name
    term: _Term
    at: Moment


class BackupReport(Body, frozen=True, kw_only=True):
    """What the backup agent knows. Its times are PostgreSQL's, and auth compares them with PostgreSQL's clock."""

    site: _Name
    term: _Term
    #: The store, without credentials.
    to: _Text
    #: The first and the last second that can be restored; None before the first backup.
    recoverable_from: Moment | None = None
    recoverable_until: Moment | None = None
    #: From the newest commit to the newest commit in the store; None if unknown.
    wal_lag_seconds: _Seconds | None = None
    #: What the replication slot keeps on the disk, and the most that it may keep (`BACKUP_WAL_MOST`); 0 without a slot.
    wal_slot_bytes: _Count = 0
    wal_slot_most_bytes: _Count = 0
    #: How long the store has lacked lines of a recovery log; 0 if it has all.
    log_behind_seconds: _Seconds = 0.0
    #: None while the store works.
    store_failing_since: Moment | None = None
    store_error: _Text = ""
    #: Newest first.
    backups: Annotated[tuple[BackupEntry, ...], Meta(max_length=MAX_BACKUPS)] = ()
    last_test: RestoreTest | None = None
    #: The site with a higher term, which owns the mesh now.
    replaced_by: SiteTerm | None = None


class ReportBackup(Body, frozen=True):
    report: BackupReport


class BackupState(StrEnum):
    """The setting `BACKUP_STATE` of auth."""

    #: An agent makes backups and reports.
    ON = "on"
    #: There are no backups, and only this machine can reach the stack.
    OFF = "off"
    #: There are no backups, though other machines can reach the stack.
    MISSING = "missing"


class GetBackups(Body, frozen=True):
    pass


class Backups(Body, frozen=True, kw_only=True, omit_defaults=False):
    state: BackupState
    #: The newest report; None before the first, and without backups.
    report: BackupReport | None = None
    #: When auth received it, and how old it is now by PostgreSQL's clock; before the first, the time since backups were turned on.
    reported_at: Moment | None = None
    age_seconds: float | None = None


report_backup = Method("auth.reportBackup", ReportBackup, Nothing, callers={Role.BACKUP})
get_backups = Method("auth.getBackups", GetBackups, Backups, callers=PEOPLE)
