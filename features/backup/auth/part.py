"""What backups add to auth."""

from features.backup.auth.backup_reports import BackupReports
from features.backup.auth.store import BackupStore
from features.backup.settings import BackupStateSettings
from services.auth.features import AuthPart, Built, Site


def _build(site: Site) -> Built:
    reports = BackupReports(site.settings.of(BackupStateSettings).backup_state, site.node.metrics, BackupStore(site.database))
    return Built(served=[reports], tasks={"backup reports": reports.run})


PART = AuthPart(build=_build)
