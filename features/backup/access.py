"""Who may call the methods of backups, and open their page."""

from shared.access_rules import NODE, person
from shared.types import Permission

METHODS = {"auth.getBackups": person(Permission.EVERYTHING), "auth.reportBackup": NODE}
ANSWERS = {"auth.reportBackup": "services of the operator"}
PAGES = {"/admin/backups": "administrator"}
