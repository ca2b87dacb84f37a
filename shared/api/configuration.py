"""gateway: the configuration as versioned documents, which administrators apply, compare and roll back while the mesh runs."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from shared.api.method import PEOPLE, Body, Method
from shared.config_documents import ConfigKind, PolicyDocument, ServedName, Sticky, TokenCount
from shared.types import KeyId, MicroCredits, TenantId, Tier

#: Of one file: a message of the mesh has up to 1 MiB.
MAX_FILE_BYTES = 960 * 1024
MAX_NOTE_CHARACTERS = 500

Note = Annotated[str, Meta(max_length=MAX_NOTE_CHARACTERS)]
ConfigText = Annotated[str, Meta(max_length=MAX_FILE_BYTES)]


class ConfigDocument(Body, frozen=True, omit_defaults=False):
    kind: ConfigKind
    name: str
    #: JSON; None removes the document.
    body: ConfigText | None


class ConfigChange(Body, frozen=True, omit_defaults=False):
    kind: ConfigKind
    name: str
    #: The bodies as YAML; None where the document doesn't exist.
    before: str | None
    after: str | None
    #: Of the new version; 0 in a dry run.
    version: int = 0
    #: ``before`` and ``after`` are None because the reply would be too large.
    is_cut: bool = False


class ApplyConfig(Body, frozen=True):
    """Change the documents that ``text`` (YAML) or ``documents`` name, all or none. Others stay."""

    text: ConfigText | None = None
    documents: Annotated[tuple[ConfigDocument, ...], Meta(max_length=5_000)] = ()
    #: Refuse with already_exists unless this is the current revision; None for any.
    expected_revision: int | None = None
    #: Return the changes without making them.
    dry_run: bool = False
    #: Also remove the routes and model limits that ``text`` or ``documents`` don't name, and reset other unnamed documents.
    prune: bool = False
    note: Note = ""


class AppliedConfig(Body, frozen=True, omit_defaults=False):
    revision: int
    #: Empty if everything is so already: then no version is written.
    changes: tuple[ConfigChange, ...]
    warnings: tuple[str, ...] = ()


class ExportConfig(Body, frozen=True):
    pass


class ExportedConfig(Body, frozen=True, omit_defaults=False):
    revision: int
    #: YAML, as ``applyConfig`` takes it.
    text: str
    #: Documents that were edited by hand, so that their settings in the environment are ignored, and these settings.
    ignored_settings: tuple[str, ...] = ()


class ListConfigVersions(Body, frozen=True):
    """List versions, newest first."""

    #: None for all kinds and names.
    kind: ConfigKind | None = None
    name: str | None = None
    #: None for all versions.
    version: int | None = None
    #: Only documents that exist, each with its current version.
    only_current: bool = False
    #: Include the bodies of up to 10 versions.
    bodies: bool = False
    limit: Annotated[int, Meta(ge=1, le=3_000)] = 100


class ConfigVersion(Body, frozen=True, omit_defaults=False):
    kind: ConfigKind
    name: str
    version: int
    #: The revision of the whole configuration that this version began with.
    revision: int
    #: YAML; None if the version removed the document, or if bodies were not requested.
    body: str | None
    removes: bool
    #: environment, applied, or rollback.
    origin: str
    #: The username; empty for the environment.
    author: str
    note: str
    created_at: datetime
    is_current: bool


class ConfigVersions(Body, frozen=True):
    versions: tuple[ConfigVersion, ...]


class RollbackConfig(Body, frozen=True):
    """Write a new version with the body of an old one."""

    kind: ConfigKind
    name: str
    version: int
    expected_revision: int | None = None
    dry_run: bool = False
    note: Note = ""


class ImportEnvironment(Body, frozen=True):
    """Write the settings of this gateway's environment as new versions, also over documents edited by hand."""

    dry_run: bool = False


class ListRoutes(Body, frozen=True):
    pass


class RouteTargetState(Body, frozen=True, omit_defaults=False):
    name: str
    model: str
    #: Percent; None without a share.
    share: float | None
    order: int | None
    #: Workers that serve the model now.
    workers: int
    #: Credits that it cost upstream today, and at most may; None without a ceiling.
    spent_micro: MicroCredits = MicroCredits(0)
    ceiling_micro: MicroCredits | None = None


class RouteState(Body, frozen=True, omit_defaults=False):
    name: str
    version: int
    sticky: Sticky
    targets: tuple[RouteTargetState, ...]


class RouteStates(Body, frozen=True):
    routes: tuple[RouteState, ...]


class TryRoute(Body, frozen=True):
    """Explain how requests would be routed, without running them."""

    #: A route, or another model name.
    name: ServedName
    #: That many requests, each of another conversation.
    count: Annotated[int, Meta(ge=1, le=10_000)] = 1_000
    prompt_tokens: TokenCount = 100
    tools: bool = False
    response_format: bool = False
    tier: Tier = Tier.FREE
    key_name: str | None = None
    #: Whose policy applies; None for the default one.
    organization: TenantId | None = None
    key: KeyId | None = None


class TriedTarget(Body, frozen=True, omit_defaults=False):
    name: str
    model: str
    #: Requests that try this target first.
    first: int
    #: Position among the fallbacks, from 1; None if it is none.
    fallback: int | None
    #: Why it is not used; empty if it is.
    reason: str


class TriedRoute(Body, frozen=True, omit_defaults=False):
    name: str
    version: int
    targets: tuple[TriedTarget, ...]
    #: Requests that no target takes.
    refused: int


#: mesh, default, organization:ID or key:ID.
PolicyName = Annotated[str, Meta(max_length=60, pattern=r"^(mesh|default|(organization|key):[0-9a-f-]{36})\Z")]


class GetPolicy(Body, frozen=True):
    #: None for that of the caller's organization, or of the caller without one.
    name: PolicyName | None = None


class PolicyState(Body, frozen=True, omit_defaults=False):
    name: str
    #: 0 if there has never been one.
    version: int
    #: None if there is none.
    policy: PolicyDocument | None
    #: Whether the caller may change it.
    may_change: bool


class SetPolicy(Body, frozen=True):
    name: PolicyName
    #: None removes it.
    policy: PolicyDocument | None
    #: Refuse with already_exists unless this is the current version; None for any.
    expected_version: int | None = None
    note: Note = ""


class ExplainPolicy(Body, frozen=True):
    """Explain what applies to requests of an organization, or of one of its keys; by default to the caller's."""

    organization: TenantId | None = None
    key: KeyId | None = None


class PolicyRule(Body, frozen=True, omit_defaults=False):
    """A rule that applies, after all levels."""

    rule: str
    #: For people.
    value: str
    #: The levels behind it: mesh, default, organization, key, or built-in.
    levels: tuple[str, ...]


class PolicyExplanation(Body, frozen=True):
    rules: tuple[PolicyRule, ...]


apply_config = Method("gateway.applyConfig", ApplyConfig, AppliedConfig, callers=PEOPLE)
export_config = Method("gateway.exportConfig", ExportConfig, ExportedConfig, callers=PEOPLE)
list_config_versions = Method("gateway.listConfigVersions", ListConfigVersions, ConfigVersions, callers=PEOPLE)
rollback_config = Method("gateway.rollbackConfig", RollbackConfig, AppliedConfig, callers=PEOPLE)
import_environment = Method("gateway.importEnvironment", ImportEnvironment, AppliedConfig, callers=PEOPLE)
list_routes = Method("gateway.listRoutes", ListRoutes, RouteStates, callers=PEOPLE)
try_route = Method("gateway.tryRoute", TryRoute, TriedRoute, callers=PEOPLE)
get_policy = Method("gateway.getPolicy", GetPolicy, PolicyState, callers=PEOPLE)
set_policy = Method("gateway.setPolicy", SetPolicy, PolicyState, callers=PEOPLE)
explain_policy = Method("gateway.explainPolicy", ExplainPolicy, PolicyExplanation, callers=PEOPLE)
