"""Who may record what a check of a model has found: callers can't praise their own models."""

from shared.access_rules import person
from shared.types import Permission

METHODS = {
    "gateway.findModelBuilds": person(Permission.EVERYTHING),
    "gateway.recordModelCheck": person(Permission.EVERYTHING),
}
