"""Refuse a replica that lacks a setting that a running one has: it would fail requests that the other one answers. Pure.

Announcements carry the names of these settings, never their values. See ``config.Variable.on_all_replicas``.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from shared import errors
from shared.protocol.directory import Announcement
from shared.types import SERVICE_NAMES, Role

#: The role whose nodes have the same settings as those of a role. A web node hears only gateways. Workers share none: they serve different
#: models.
COMPARED_WITH = {Role.AUTH: Role.AUTH, Role.GATEWAY: Role.GATEWAY, Role.METRICS: Role.METRICS, Role.WEB: Role.GATEWAY}


@dataclass(frozen=True, slots=True)
class ReplicaCheck:
    role: Role
    #: Names of the settings that all replicas need if one has them: those that this process has, and those that it lacks.
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def refuse_incomplete(self, others: Iterable[Announcement]) -> None:
        """Raises BadSettings if a node that is ready has what this one lacks."""
        ready = [other for other in others if not (other.not_ready or other.draining or other.leaving)]
        for other in ready:
            if lacking := [name for name in self.absent if name in other.settings]:
                raise errors.BadSettings(
                    f"this replica lacks {', '.join(lacking)}, which {other.node[:12]} has",
                    hint=f"{hint(self.role)}; REPLICA_CHECK=off starts it anyway",
                )


def describe_features(own: Collection[str], others: Iterable[Announcement]) -> str:
    """Return which programs lack features that others have; empty if all have the same. A worker may be older."""
    ready = [each for each in others if each.role in COMPARED_WITH and not (each.draining or each.leaving)]
    used = {name for each in ready for name in each.features} | {*own}
    lacking = [("this one", used.difference(own))]
    lacking += [(f"{SERVICE_NAMES[each.role]} {each.node[:12]}", used.difference(each.features)) for each in ready]
    return "; ".join(f"{who} lacks {', '.join(sorted(names))}" for who, names in lacking if names)


def hint(role: Role) -> str:
    return f"on the first machine, `aicli stack replica {SERVICE_NAMES[role]} FOLDER` writes all that it needs"
