"""The requests of the access matrix for backups."""

from collections.abc import Callable
from typing import Any

from features.backup import contract

REQUESTS: dict[str, Callable[[], Any]] = {
    "auth.reportBackup": lambda: contract.ReportBackup(contract.BackupReport(site="none", term=1, to="")),
}
BODIES: dict[str, Callable[[], Any]] = {}
