"""Whose prompts a machine may see.  Pure.

Whoever runs a worker can read the prompts that it answers. Three facts decide: who owns the machine, by its certificate (nobody:
the house); the label ``trusted=yes``, which only a ticket gives and so only an administrator; and the label ``shared=no``, by
which an owner keeps a machine for himself.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from shared.discovery.directory import DirectoryEntry
from shared.types import TenantId

TRUSTED = "trusted"
SHARED = "shared"
_YES = frozenset({"yes", "true", "1"})
_NO = frozenset({"no", "false", "0"})


class PromptPrivacy(StrEnum):
    #: Every machine that an administrator let in serves everybody, unless its owner keeps it for himself.
    GROUP = "group"
    #: A user's prompts go to the house, to machines labelled trusted, and to the user's own.
    TRUSTED = "trusted"


def why_not(tenant: TenantId, owner: str, labels: Mapping[str, str], policy: PromptPrivacy) -> str:
    """Why the machine may not have the tenant's prompts, for people; empty where it may."""
    if owner and owner == str(tenant):
        return ""
    if labels.get(SHARED, "").lower() in _NO:
        return "serves only its owner (label shared=no)"
    if policy is PromptPrivacy.GROUP or not owner or labels.get(TRUSTED, "").lower() in _YES:
        return ""
    return "is not labelled trusted=yes (ROUTING_POLICY=trusted)"


def open_to(tenant: TenantId, workers: Iterable[DirectoryEntry], policy: PromptPrivacy) -> list[DirectoryEntry]:
    """Those that may have the tenant's prompts: what they serve is what there is for him."""
    return [worker for worker in workers if not why_not(tenant, worker.announcement.owner, worker.announcement.labels, policy)]
