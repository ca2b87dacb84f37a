"""Backups as auth reports them."""

from features.backup import contract
from features.backup.contract import Backups, BackupState
from shared.types import Credential

#: What the pages of administrators may call.
READING = {"auth.getBackups"}


class FakeBackups:
    def __init__(self) -> None:
        super().__init__()
        self.backups = Backups(state=BackupState.OFF)

    def _get_backups(self, _request: contract.GetBackups, _credential: Credential | None) -> Backups:
        return self.backups


FAKE = FakeBackups
