"""What `aicli doctor` says of backups."""

from typing import Any

import msgspec
import pytest

from features.backup import contract
from features.backup.contract import BackupEntry, BackupReport, Backups, BackupState
from shared import errors
from tests.cli.doctor.test_doctor_command import NOW, examined, listening, use, well
from tests.cli.fake_mesh import Shell


def backups(age_seconds: float = 5, **changed: Any) -> Backups:
    entry = BackupEntry(name="one", at=NOW, size_bytes=1, seconds=1)
    report = BackupReport(site="north", term=1, to="/srv/backup", backups=(entry,))
    return Backups(
        state=BackupState.ON, report=msgspec.structs.replace(report, **changed), reported_at=NOW, age_seconds=age_seconds
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "ok", "detail", "hint"),
    [
        (Backups(state=BackupState.OFF), None, "there are no backups", "BACKUP_TO"),
        (Backups(state=BackupState.MISSING), None, "there are no backups", "BACKUP_TO"),
        (Backups(state=BackupState.ON), None, "has not reported yet", ""),
        (Backups(state=BackupState.ON, age_seconds=120), None, "has not reported yet", ""),
        (Backups(state=BackupState.ON, age_seconds=121), False, "has never reported", "the mesh refuses it: aicli stack logs backup"),
        (backups(300), False, "has not reported for 5 min", "the mesh refuses it: aicli stack logs backup"),
        (backups(120, store_failing_since=NOW, store_error="403 Forbidden"), False, "403 Forbidden", "stack logs backup"),
        (backups(backups=()), None, "the first one is not complete", ""),
        (backups(), True, "newest 2026-01-02 03:04 UTC", ""),
    ],
)
async def test_backups(shell: Shell, found: Backups, ok: bool | None, detail: str, hint: str) -> None:
    well(shell.mesh)
    shell.mesh.answer(contract.get_backups, found)
    async with listening(b"INFO {}\r\n") as port:
        use(shell, port)
        finding = (await examined(shell))[-1]
    assert (finding.check, finding.ok) == ("backups", ok)
    assert detail in finding.detail
    assert hint in finding.hint
    assert bool(finding.hint) == bool(hint)


async def test_who_may_not_read_backups_gets_no_finding_about_them(shell: Shell) -> None:
    well(shell.mesh)
    shell.mesh.answer(contract.get_backups, errors.NotAllowed("only administrators may", hint="ask one"))
    async with listening(b"INFO {}\r\n") as port:
        use(shell, port)
        assert (await examined(shell))[-1].check == "models"
