"""The messages about trust: signatures of versions, and the rules that say whose signatures count."""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from shared.api.method import PEOPLE, Body, Method
from shared.api.models import ModelVersion, VersionNumber
from shared.config_documents import TrustDocument, TrustMode
from shared.models.manifest import MAX_SIGNATURE_BYTES, Digest
from shared.types import ModelName, Role

#: Where a rule can't be read.
NOTHING_TRUSTED = TrustDocument(mode=TrustMode.ENFORCE)
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
    #: ``TrustDocument`` by the names of models that they are for. Not of this type, so that one of a newer gateway, which the worker can't
    #: read, leaves the others as they are.
    rules: dict[str, dict[str, object]]
    versions: dict[ModelName, VersionTrust]

    @classmethod
    def of(cls, rules: Mapping[str, TrustDocument], versions: dict[ModelName, VersionTrust]) -> "TakenTrust":
        return cls({name: msgspec.to_builtins(rule) for name, rule in rules.items()}, versions)

    def read_rules(self) -> dict[str, TrustDocument]:
        """Return the rules; where one can't be read, nothing may be loaded."""
        return {name: _read_rule(rule) for name, rule in self.rules.items()}


def _read_rule(rule: dict[str, object]) -> TrustDocument:
    try:
        return msgspec.convert(rule, TrustDocument)
    except msgspec.ValidationError:
        return NOTHING_TRUSTED


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
