"""Who may call the method of autoscaling."""

from shared.access_rules import person
from shared.types import Permission, Role

METHODS = {"metrics.getScaling": person(Permission.READ_SCALING, unless={Role.OPERATOR})}
