"""Waits until every gateway uses the present versions of models, so that none begins an answer of one that was just revoked."""

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

from shared import errors
from shared.protocol.directory import Directory
from shared.types import NodeId, Role

#: A gateway that lost PostgreSQL's notification looks after 5 s. Callers wait 10 s for an answer.
WAIT_SECONDS = 8.0
_LOOK_SECONDS = 0.02


class LiveModels(Protocol):
    """The versions of models that this gateway uses: ``LiveConfiguration``."""

    @property
    def models_revision(self) -> int:
        """Return a number that has grown with each change."""
        ...

    async def reload(self) -> None:
        """Use what PostgreSQL has. Raises Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class UsedEverywhere:
    live: LiveModels
    nodes: Directory

    async def __call__(self) -> None:
        """Wait for this gateway and all others that are alive. Raises Unavailable, also if one doesn't say so in time."""
        await self.live.reload()
        wanted, gives_up_at = self.live.models_revision, time.monotonic() + WAIT_SECONDS
        while late := self._late(wanted):
            if time.monotonic() >= gives_up_at:
                named = ", ".join(f"{node[:8]}…" for node in late[:3])
                raise errors.Unavailable(
                    f"the change is stored, but {len(late)} other gateways have not confirmed it within {WAIT_SECONDS:g} s ({named})",
                    hint="they may still begin answers of the version; look at `aicli nodes`, and stop a gateway that hangs",
                )
            await asyncio.sleep(_LOOK_SECONDS)

    def _late(self, wanted: int) -> list[NodeId]:
        """Return the other gateways that announce an older revision. One of an older release announces none."""
        found = [entry.announcement for entry in self.nodes.entries(Role.GATEWAY) if entry.alive]
        return [each.node for each in found if each.models_revision is not None and each.models_revision < wanted]
