"""The check of `aicli doctor`."""

from cli.connection import CliConnection
from cli.doctor.findings import DoctorFinding
from features.backup import contract
from shared import errors

#: As the other checks.
_STEP_SECONDS = 5.0


async def check(connection: CliConnection) -> list[DoctorFinding]:
    """Return nothing for those who may not know: they cannot change it either."""
    try:
        found = await connection.call(contract.get_backups, contract.GetBackups(), deadline_seconds=_STEP_SECONDS)
    except errors.AimeshError:
        return []
    if found.state is not contract.BackupState.ON:
        hint = "set BACKUP_TO and BACKUP_RECIPIENTS; Admin → Backups shows the commands"
        return [DoctorFinding("backups", None, "there are no backups", hint)]
    if (age := found.age_seconds or 0.0) > contract.AGENT_GONE_SECONDS:
        silence = "has never reported" if found.report is None else f"has not reported for {age / 60:.0f} min"
        hint = "it is down, or the mesh refuses it: aicli stack logs backup"
        return [DoctorFinding("backups", False, f"the backup agent {silence}", hint)]
    if found.report is None:
        return [DoctorFinding("backups", None, "the backup agent has not reported yet")]
    hint = "see aicli stack logs backup"
    if found.report.store_failing_since is not None:
        return [DoctorFinding("backups", False, f"the backup agent cannot use the store: {found.report.store_error}", hint)]
    newest = max((each.at for each in found.report.backups), default=None)
    text = "the first one is not complete" if newest is None else f"newest {newest:%Y-%m-%d %H:%M} UTC"
    return [DoctorFinding("backups", newest is not None or None, text)]
