"""gateway: the configuration as versioned documents, which administrators apply, compare and roll back while the mesh runs."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shared.api.method import PEOPLE, Body, Method
from shared.types import MicroCredits, Tier

MAX_ROUTES = 500
MAX_TARGETS = 20
#: Of one file: a message of the mesh has up to 1 MiB.
MAX_FILE_BYTES = 960 * 1024
#: Of all bodies as JSON, so that they fit into one message as YAML.
MAX_CONFIG_BYTES = 512 * 1024
#: The only document of the kind ``default_model``.
DEFAULT_MODEL = "default"
#: The policy that applies to everybody.
MESH_POLICY = "mesh"
#: The value for no limit.
UNLIMITED: Literal["unlimited"] = "unlimited"

#: A name in the configuration: the public name of a model or another document.
DocumentName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,99}\Z")]
ServedName = Annotated[str, Meta(min_length=1, max_length=200)]
TokenCount = Annotated[int, Meta(ge=0, le=10**9)]
Limit = Annotated[int, Meta(ge=1, le=10**12)] | Literal["unlimited"]
Credits = Annotated[int, Meta(ge=0, le=10**12)] | Literal["unlimited"]
#: Credits with at most six decimals, as text or as a number.
Money = Annotated[str, Meta(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6})?\Z")] | Annotated[float, Meta(ge=0, lt=10**6)]


class ConfigKind(StrEnum):
    ROUTE = "route"
    POLICY = "policy"
    PLAN = "plan"
    MODEL_LIMIT = "model_limit"
    DEFAULT_MODEL = "default_model"
    UPSTREAM_PRICE = "upstream_price"


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The body of a document. Fields are written as here, in files and on the wire."""


class TargetConditions(Document, frozen=True):
    """Which requests a target takes. A missing field is no condition."""

    #: Estimated, a token for every three bytes.
    min_prompt_tokens: TokenCount | None = None
    max_prompt_tokens: TokenCount | None = None
    #: Whether the request has tools.
    tools: bool | None = None
    #: Whether the request has a response format.
    response_format: bool | None = None
    #: Any of these; empty for all.
    tiers: tuple[Tier, ...] = ()
    #: Names of API keys; empty for all callers.
    keys_named: Annotated[tuple[str, ...], Meta(max_length=100)] = ()


class TargetDocument(Document, frozen=True):
    #: Unique within its route.
    name: DocumentName
    #: A served model, never a route.
    model: ServedName
    #: Percent of the conversations, users or organizations that start here, with at most two decimals. The shares of a route sum up to 100.
    share: Annotated[float, Meta(ge=0, le=100)] | None = None
    #: Tried after the drawn target, lowest first. A target without an order is no fallback.
    order: Annotated[int, Meta(ge=0, le=100)] | None = None
    when: TargetConditions | None = None
    #: Upstream money for a UTC day, over all gateways. Its model needs an upstream price.
    daily_ceiling: Money | None = None


class Sticky(StrEnum):
    """What stays at the target that was drawn for it."""

    CONVERSATION = "conversation"
    USER = "user"
    ORGANIZATION = "organization"
    REQUEST = "request"


class RouteDocument(Document, frozen=True):
    """What runs under one public model name."""

    targets: Annotated[tuple[TargetDocument, ...], Meta(min_length=1, max_length=MAX_TARGETS)]
    sticky: Sticky = Sticky.CONVERSATION
    #: Take the next target if the wait at one is longer; None: wait.
    spill_after_seconds: Annotated[float, Meta(ge=0, le=600)] | None = None
    #: target: callers pay the price of the model that answered; route: that of the route's name.
    price: Literal["target", "route"] = "target"
    #: A target, or a model with an upstream price: what internal answers would have cost there.
    compare_cost_with: ServedName | None = None

    @property
    def is_alias(self) -> bool:
        """Whether it only gives a served model another name."""
        return self == RouteDocument(targets=(TargetDocument(name=self.targets[0].name, model=self.targets[0].model),))


class PolicyDocument(Document, frozen=True, omit_defaults=False):
    #: group: prompts run on every enrolled machine; trusted: on the operator's machines, the user's own, and those labeled trusted=yes.
    machines: Literal["group", "trusted"] = "group"
    #: Whether callers may name served models that no route names.
    direct_models: bool = True


class PlanDocument(Document, frozen=True):
    """The limits of a tier. A missing number is the tier's built-in default."""

    requests_per_hour: Limit | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    #: Concurrent requests of one user.
    concurrency: Limit | None = None
    #: Per month.
    credits: Credits | None = None


class ModelLimitDocument(Document, frozen=True):
    """The limits of a public model over all its callers. A missing number is no limit."""

    requests_per_hour: Limit | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrency: Limit | None = None


class DefaultModelDocument(Document, frozen=True):
    """The model of requests that name none."""

    model: ServedName


class UpstreamPriceDocument(Document, frozen=True):
    """What a provider asks for a served model."""

    #: For a million tokens.
    input: Money
    output: Money
    #: For tokens of the prompt that the provider has cached; by default as ``input``.
    cached_input: Money | None = None
    #: For each request.
    request: Money = 0.0


#: The body of each kind, and the key of the file that holds its documents by name; ``default_model`` is only a name there.
BODIES: dict[ConfigKind, type[Document]] = {
    ConfigKind.ROUTE: RouteDocument,
    ConfigKind.POLICY: PolicyDocument,
    ConfigKind.PLAN: PlanDocument,
    ConfigKind.MODEL_LIMIT: ModelLimitDocument,
    ConfigKind.DEFAULT_MODEL: DefaultModelDocument,
    ConfigKind.UPSTREAM_PRICE: UpstreamPriceDocument,
}
SECTIONS: dict[str, ConfigKind] = {
    "routes": ConfigKind.ROUTE,
    "policies": ConfigKind.POLICY,
    "plans": ConfigKind.PLAN,
    "model_limits": ConfigKind.MODEL_LIMIT,
    "default_model": ConfigKind.DEFAULT_MODEL,
    "upstream_prices": ConfigKind.UPSTREAM_PRICE,
}
#: Kinds whose documents have fixed names.
FIXED_NAMES: dict[ConfigKind, tuple[str, ...]] = {
    ConfigKind.POLICY: (MESH_POLICY,),
    ConfigKind.PLAN: tuple(Tier),
    ConfigKind.DEFAULT_MODEL: (DEFAULT_MODEL,),
}


# --- messages -----------------------------------------------------------------------------------------------------------

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


apply_config = Method("gateway.applyConfig", ApplyConfig, AppliedConfig, callers=PEOPLE)
export_config = Method("gateway.exportConfig", ExportConfig, ExportedConfig, callers=PEOPLE)
list_config_versions = Method("gateway.listConfigVersions", ListConfigVersions, ConfigVersions, callers=PEOPLE)
rollback_config = Method("gateway.rollbackConfig", RollbackConfig, AppliedConfig, callers=PEOPLE)
import_environment = Method("gateway.importEnvironment", ImportEnvironment, AppliedConfig, callers=PEOPLE)
list_routes = Method("gateway.listRoutes", ListRoutes, RouteStates, callers=PEOPLE)
try_route = Method("gateway.tryRoute", TryRoute, TriedRoute, callers=PEOPLE)
