"""The messages of the registry: versions of models, their channels, and uploads of their files."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from shared.api.method import PEOPLE, Body, Method
from shared.models.manifest import Digest, ModelKind, VersionFacts
from shared.models.version_names import CHANNEL_PATTERN, MAX_VERSION, STABLE
from shared.types import ModelName, Moment, TenantId, UserId

#: Of one question for blobs: a version has at most 514.
MAX_BLOBS = 600
MAX_VERSIONS = 1000

VersionNumber = Annotated[int, Meta(ge=1, le=MAX_VERSION)]
Channel = Annotated[str, Meta(pattern=rf"^{CHANNEL_PATTERN}\Z")]
Reason = Annotated[str, Meta(min_length=1, max_length=1000)]


class VersionState(StrEnum):
    CHECKING = "checking"
    READY = "ready"
    REFUSED = "refused"
    RETIRED = "retired"
    #: Final.
    REVOKED = "revoked"


class FindModelBlobs(Body, frozen=True):
    """How far uploads are. What others have pushed is unknown to a caller."""

    digests: Annotated[tuple[Digest, ...], Meta(max_length=MAX_BLOBS)]
    #: Refuse at once what can't be pushed under this name.
    model: ModelName | None = None
    #: As in ``CompleteModelVersion``.
    organization: TenantId | None = None


class BlobUpload(Body, frozen=True):
    digest: Digest
    #: The mesh has it.
    is_stored: bool = False
    #: Where the upload continues.
    next_offset: int = 0
    #: What was uploaded has this digest instead: upload it again.
    actual_digest: Digest | None = None


class BlobUploads(Body, frozen=True):
    blobs: tuple[BlobUpload, ...]


class CompleteModelVersion(Body, frozen=True):
    """Make a version of blobs that are uploaded. The same content is the same version."""

    model: ModelName
    #: The manifest's bytes.
    manifest: bytes
    #: Refuse another number than this.
    version: VersionNumber | None = None
    #: For administrators: whose model it is. Default: the mesh's; for others, the caller's account or organization.
    organization: TenantId | None = None
    #: The channel that serves it once it is checked. Default: stable for the first version of a model that passes, and else none.
    channel: Channel | None = None


class ModelVersion(Body, frozen=True):
    model: ModelName
    version: int
    #: Of the manifest.
    digest: Digest
    state: VersionState
    size: int
    created_at: Moment
    created_by: UserId
    #: Why it was refused or revoked.
    reason: str = ""
    #: Its files are deleted.
    is_deleted: bool = False
    channels: tuple[str, ...] = ()
    #: Channels that a rollback takes to it.
    previous_of: tuple[str, ...] = ()
    #: Channels that will serve it once it is loaded where they are deployed.
    next_of: tuple[str, ...] = ()
    #: Fingerprints of keys, as the signatures claim: workers check them.
    signed_by: tuple[str, ...] = ()
    kind: ModelKind = ModelKind.MODEL
    facts: VersionFacts = VersionFacts()
    license: str = ""
    source: str = ""
    description: str = ""
    #: None: the mesh's.
    organization: TenantId | None = None

    @property
    def name(self) -> ModelName:
        """Return what workers call it, such as `llama3@7`."""
        return ModelName(f"{self.model}@{self.version}")


class ListModelVersions(Body, frozen=True):
    """Versions that the caller may see, newest first."""

    #: None: of all models.
    model: ModelName | None = None
    version: VersionNumber | None = None


class ModelVersions(Body, frozen=True):
    versions: tuple[ModelVersion, ...]


class PromoteModel(Body, frozen=True):
    """Let a channel serve a version."""

    model: ModelName
    #: None: the newest that is ready.
    version: VersionNumber | None = None
    channel: Channel = STABLE


class RollbackModel(Body, frozen=True):
    """Let a channel serve the version before."""

    model: ModelName
    channel: Channel = STABLE


class WithdrawModel(Body, frozen=True):
    """Let a channel serve nothing, until a rollback or a promotion."""

    model: ModelName
    channel: Channel = STABLE


class RetireModelVersion(Body, frozen=True):
    """Keep a version out of channels and deployments from now on."""

    model: ModelName
    version: VersionNumber


class RevokeModelVersion(Body, frozen=True):
    """Keep a version from being loaded, forever. Channels that serve it serve nothing, until a rollback or a promotion."""

    model: ModelName
    version: VersionNumber
    reason: Reason


class DeleteModelVersion(Body, frozen=True):
    """Delete the files of a version that nothing uses. Its number and digest stay."""

    model: ModelName
    version: VersionNumber


find_model_blobs = Method("gateway.findModelBlobs", FindModelBlobs, BlobUploads, callers=PEOPLE)
complete_model_version = Method("gateway.completeModelVersion", CompleteModelVersion, ModelVersion, callers=PEOPLE)
list_model_versions = Method("gateway.listModelVersions", ListModelVersions, ModelVersions, callers=PEOPLE)
promote_model = Method("gateway.promoteModel", PromoteModel, ModelVersion, callers=PEOPLE)
rollback_model = Method("gateway.rollbackModel", RollbackModel, ModelVersion, callers=PEOPLE)
withdraw_model = Method("gateway.withdrawModel", WithdrawModel, ModelVersion, callers=PEOPLE)
retire_model_version = Method("gateway.retireModelVersion", RetireModelVersion, ModelVersion, callers=PEOPLE)
revoke_model_version = Method("gateway.revokeModelVersion", RevokeModelVersion, ModelVersion, callers=PEOPLE)
delete_model_version = Method("gateway.deleteModelVersion", DeleteModelVersion, ModelVersion, callers=PEOPLE)
