"""The messages about trust: signatures of versions, and the rules that say whose signatures count."""

from typing import Annotated

import msgspec
from msgspec import Meta

from shared.api.method import PEOPLE, Body, Method
from shared.api.models import ModelVersion, VersionNumber
from shared.config_documents import TrustDocument
from shared.models.manifest import MAX_SIGNATURE_BYTES, Digest
from shared.types import ModelName, Role

#: Of one question, so that the answer fits a message with all signatures.
MAX_VERSIONS = 4


class VersionTrust(msgspec.Struct, frozen=True):
    digest: Digest
    signatures: tuple[bytes, ...] = ()
    #: Why it may not be loaded any more; None: it may.
    revoked: str | None = None


class TakeTrust(Body, frozen=True):
    """What a worker has to know before it loads models."""

    #: Served names, such as `llama3@7`.
    versions: Annotated[tuple[ModelName, ...], Meta(max_length=MAX_VERSIONS)]


class TakenTrust(Body, frozen=True):
    #: By the names of models that they are for.
    rules: dict[str, TrustDocument]
    versions: dict[ModelName, VersionTrust]


class ReadModelTrust(Body, frozen=True):
    """Without a model, only the rules."""

    model: ModelName | None = None
    version: VersionNumber | None = None


class ModelTrust(Body, frozen=True, omit_defaults=False):
    rules: dict[str, TrustDocument]
    manifest: bytes = b""
    signatures: tuple[bytes, ...] = ()


class SignModelVersion(Body, frozen=True):
    """Keep a signature of a version, which replaces an earlier one by the same key."""

    model: ModelName
    version: VersionNumber
    #: A bundle of OpenSSF's model-signing.
    signature: Annotated[bytes, Meta(max_length=MAX_SIGNATURE_BYTES)]


take_trust = Method("gateway.takeTrust", TakeTrust, TakenTrust, callers={Role.WORKER})
read_model_trust = Method("gateway.readModelTrust", ReadModelTrust, ModelTrust, callers=PEOPLE)
sign_model_version = Method("gateway.signModelVersion", SignModelVersion, ModelVersion, callers=PEOPLE)
