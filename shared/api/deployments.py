"""The gateway's methods for deployments: which models the mesh puts on which machines."""

from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.method import PEOPLE, Body, Method, Nothing
from shared.config_documents import DeploymentDocument, DocumentName
from shared.types import ModelName, NodeId


class CopyState(StrEnum):
    #: It was ordered, or is on its way.
    COMING = "coming"
    #: On its disk; loaded on the first request.
    STORED = "stored"
    LOADED = "loaded"
    #: It should have a copy, and refused.
    REFUSED = "refused"


class ModelCopy(Body, frozen=True):
    """What one machine has, or why it has nothing."""

    node: NodeId
    state: CopyState
    #: What workers call it, such as `llama3@7`.
    model: ModelName
    done_bytes: int = 0
    #: None if unknown.
    total_bytes: int | None = None
    bytes_per_second: float = 0.0
    reason: str = ""
    #: The version before, kept on the disk for a rollback.
    is_spare: bool = False
    #: Of ``done_bytes``: from other workers, and from how many now.
    from_peers_bytes: int = 0
    peers: int = 0


class Deployment(Body, frozen=True, omit_defaults=False):
    name: ModelName
    document: DeploymentDocument
    copies: tuple[ModelCopy, ...]
    #: How many more machines it needs, of the versions that it serves and will serve next.
    short: int
    #: Why there is nothing to put on machines.
    problem: str = ""

    @property
    def is_done(self) -> bool:
        """Whether every copy is on its disk, or in memory if that is wanted."""
        ready = {CopyState.LOADED} if self.document.preload else {CopyState.LOADED, CopyState.STORED}
        return self.short == 0 and all(copy.state in ready for copy in self.copies if not copy.is_spare)


class ListDeployments(Body, frozen=True):
    """For everyone who may see nodes."""

    #: None: all.
    name: ModelName | None = None


class Deployments(Body, frozen=True):
    deployments: tuple[Deployment, ...]


class DeployModel(Body, frozen=True):
    """Put a model on machines, or change how. For administrators."""

    name: DocumentName
    document: DeploymentDocument


class UndeployModel(Body, frozen=True):
    """Remove a deployment and its copies. Raises NotFound."""

    name: Annotated[str, msgspec.Meta(max_length=100)]


list_deployments = Method("gateway.listDeployments", ListDeployments, Deployments, callers=PEOPLE)
deploy_model = Method("gateway.deployModel", DeployModel, Nothing, callers=PEOPLE)
undeploy_model = Method("gateway.undeployModel", UndeployModel, Nothing, callers=PEOPLE)
