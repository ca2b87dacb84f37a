"""Names a service's files in RECOVERY_LOG_DIR, and the keys that sign its lines."""

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from shared import errors
from shared.api.method import Body
from shared.audit_anchors import AnchorKeys
from shared.types import MeshName, NodeId

_STATE_NAME = "recovery_state"


class AcceptedGap(Body, frozen=True, kw_only=True):
    """Lines that the store lacked, and that a restore did without: auth writes it to the audit log at its next start."""

    #: Of the restore's row.
    id: UUID
    missing: str


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Services and replicas may share the folder."""

    service: str
    node: NodeId
    mesh: MeshName
    keys: AnchorKeys
    #: None without RECOVERY_LOG_DIR.
    folder: Path | None

    @property
    def file(self) -> Path | None:
        """This replica's copy of the log."""
        return None if self.folder is None else self.folder / f"{self.service}-{self.node[:16]}.jsonl"

    def list_files(self) -> list[Path]:
        """Return the copies of all replicas that are here. Blocks."""
        return [] if self.folder is None else sorted(self.folder.glob(f"{self.service}-*.jsonl"))

    def state_file(self) -> Path:
        assert self.folder is not None
        return self.folder / (_STATE_NAME if self.service == "auth" else f"{_STATE_NAME}_{self.service}")

    def gap_file(self) -> Path:
        """Return where a restore leaves an ``AcceptedGap``."""
        assert self.folder is not None
        return self.folder / f"{self.service}.gap"

    def ensure(self) -> None:
        """Create the folder. Blocks; raises BadSettings."""
        assert self.folder is not None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise errors.BadSettings(
                f"RECOVERY_LOG_DIR {self.folder} cannot be created: {error.strerror}", hint="check its parent"
            ) from error
