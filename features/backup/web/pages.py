"""Show the backups and what the backup agent last reported. Nothing can be changed here: restoring stays in the CLI."""

from dataclasses import dataclass

from litestar import get
from litestar.di import NamedDependency

from features.backup import contract
from features.backup.contract import BackupEntry, BackupReport, Backups, BackupState
from services.web.charts.usage_chart import NOTHING
from services.web.pages.admin import time_texts
from services.web.pages.admin.alert_view import lasting
from services.web.request_context import Page, PageRequest
from shared import amounts, errors

_NEVER = ("Waiting", "warn", "The backup agent hasn’t reported yet. If this takes longer than a minute, run `aicli stack logs backup`.")
_GONE = ("Agent down", "bad", "The backup agent has never reported. Run `aicli stack logs backup` to see why.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRow:
    name: str
    at: str
    label: str
    size: str
    took: str
    #: Empty if no restore test of it has succeeded.
    verified: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupsPage:
    #: False without backups: the page says how to turn them on.
    is_on: bool = True
    word: str
    tone: str
    sentence: str
    report: BackupReport | None = None
    window: tuple[str, str] | None = None
    lag: str = NOTHING
    test: tuple[str, str] | None = None
    backups: tuple[BackupRow, ...] = ()


def describe(found: Backups) -> BackupsPage:
    report = found.report
    if found.state is not BackupState.ON:
        return BackupsPage(is_on=False, word="No backups", tone="warn", sentence="If you lose this machine’s disk, you lose everything.")
    if report is None:
        word, tone, sentence = _GONE if (found.age_seconds or 0.0) > contract.AGENT_GONE_SECONDS else _NEVER
        return BackupsPage(word=word, tone=tone, sentence=sentence)
    word, tone, sentence = _verdict(report, found.age_seconds or 0.0)
    ends = (report.recoverable_from, report.recoverable_until)
    return BackupsPage(
        word=word,
        tone=tone,
        sentence=sentence,
        report=report,
        window=None if ends[0] is None or ends[1] is None else (time_texts.second(ends[0]), time_texts.second(ends[1])),
        lag=NOTHING if report.wal_lag_seconds is None else _short(report.wal_lag_seconds),
        test=None if report.last_test is None else ("OK" if report.last_test.ok else "Failed", time_texts.moment(report.last_test.at)),
        backups=tuple(map(_backup, report.backups)),
    )


def _verdict(report: BackupReport, age_seconds: float) -> tuple[str, str, str]:
    """Return word, tone and sentence for what needs attention first."""
    if report.replaced_by is not None:
        other = report.replaced_by
        return "Replaced", "bad", f"The site {other.site} took over with term {other.term} at {time_texts.moment(other.at)}."
    if age_seconds > contract.AGENT_GONE_SECONDS:
        return "Agent down", "bad", f"The backup agent last reported {lasting(age_seconds)} ago. Everything below is as of then."
    if report.store_failing_since is not None:
        since = time_texts.moment(report.store_failing_since)
        return "Store failing", "bad", f"The backup agent can’t use the store since {since}: {report.store_error or 'no reason given'}."
    if report.last_test is not None and not report.last_test.ok:
        return "Test failed", "bad", f"The last restore test failed: {report.last_test.why or 'no reason given'}."
    if not report.backups:
        return "No backup yet", "warn", "The first backup isn’t complete. The store works."
    return "OK", "good", f"The backup agent reported {lasting(age_seconds)} ago, and the store works."


def _short(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else lasting(seconds)


def _backup(entry: BackupEntry) -> BackupRow:
    return BackupRow(
        name=entry.name,
        at=time_texts.moment(entry.at),
        label=entry.label,
        size=amounts.show_bytes(entry.size_bytes),
        took=_short(entry.seconds),
        verified="" if entry.verified_at is None else time_texts.moment(entry.verified_at),
    )


@get("/admin/backups")
async def show_backups(page_request: NamedDependency[PageRequest]) -> Page:
    try:
        view = describe(await page_request.call(contract.get_backups, contract.GetBackups()))
    except errors.PeerError as error:
        view = BackupsPage(word="Unknown", tone="warn", sentence="The backups can’t be read.")
        return page_request.page("backup/backups.html", view, problem=error)
    return page_request.page("backup/backups.html", view)


async def are_missing(page_request: PageRequest) -> bool:
    found = await page_request.fetch(contract.get_backups, contract.GetBackups())
    return found is not None and found.state is not BackupState.ON
