"""Who may read the state of the usage export."""

from shared.access_rules import person
from shared.types import Permission

METHODS = {"gateway.readUsageExport": person(Permission.EVERYTHING)}
