"""Who may read the statements of node owners. The pages are below those of the core."""

from shared.access_rules import person
from shared.types import Permission

METHODS = {"gateway.getOwnerStatements": person(Permission.OWN_NODES)}
