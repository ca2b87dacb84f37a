"""gateway: the configuration as versioned documents, which administrators apply, compare and roll back while the mesh runs."""

from enum import StrEnum
from typing import Annotated
from uuid import UUID

from msgspec import Meta

from shared.api.method import PEOPLE, Body, Method
from shared.config_documents import (
    ConfigKind,
    DocumentName,
    GuardAction,
    GuardKind,
    PolicyDocument,
    RouteName,
    ServedName,
    Sticky,
    TokenCount,
)
from shared.types import KeyId, MicroCredits, Moment, PlanName, TenantId, Tier

#: Of one file: a message of the mesh has up to 1 MiB.
MAX_FILE_BYTES = 960 * 1024
MAX_NOTE_CHARACTERS = 500

Note = Annotated[str, Meta(max_length=MAX_NOTE_CHARACTERS)]
ConfigText = Annotated[str, Meta(max_length=MAX_FILE_BYTES)]
#: These two have the ranges of the gateway's columns.
Version = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Revision = Annotated[int, Meta(ge=0, le=2**63 - 1)]


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
    expected_revision: Revision | None = None
    #: Return the changes without making them.
    dry_run: bool = False
    #: Refuse with already_exists if one of the documents exists.
    only_new: bool = False
    #: Also remove the routes and model limits that ``text`` or ``documents`` don't name, and reset other unnamed documents; not what
    #: tenants wrote.
    prune: bool = False
    note: Note = ""


class AppliedConfig(Body, frozen=True, omit_defaults=False):
    revision: int
    #: Empty if everything is so already: then no version is written.
    changes: tuple[ConfigChange, ...]
    warnings: tuple[str, ...] = ()
    #: False: it is done, but the recovery log on disk lacks it for now.
    logged: bool = True


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
    version: Version | None = None
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
    created_at: Moment
    is_current: bool
    #: Older gateways are cut off while this version is current; empty if this gateway can't tell.
    needs_release: str = ""


class ConfigVersions(Body, frozen=True):
    versions: tuple[ConfigVersion, ...]


class RollbackConfig(Body, frozen=True):
    """Write a new version with the body of an old one."""

    kind: ConfigKind
    name: str
    version: Version
    expected_revision: Revision | None = None
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
    #: How long equal requests are answered from the cache; None if only deterministic ones are.
    cache_seconds: int | None = None


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
    tier: PlanName = Tier.FREE
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


Percent = Annotated[float, Meta(ge=0, le=100)]


class RolloutState(StrEnum):
    RUNNING = "running"
    #: No outcomes have come for a while: no step up.
    HOLDING = "holding"
    PAUSED = "paused"
    ROLLED_BACK = "rolled_back"
    PROMOTED = "promoted"
    #: A comparison is over.
    ENDED = "ended"


#: The candidate has its share, and outcomes are judged.
OPEN_STATES = frozenset({RolloutState.RUNNING, RolloutState.HOLDING, RolloutState.PAUSED})


class RolloutAction(StrEnum):
    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    ABORT = "abort"


class RolloutGuards(Body, frozen=True, omit_defaults=False):
    """How much worse than the baseline the candidate may be before it is rolled back. None: not judged."""

    #: Percentage points of failed answers.
    errors: Percent | None = 1.0
    #: Percentage points of answers that begin late: after 1.5 times what 95 % of the baseline's took.
    first_token: Percent | None = 5.0
    #: Percentage points of thumbs down among all thumbs.
    thumbs: Percent | None = 10.0
    #: Times what the baseline costs upstream for each token.
    cost: Annotated[float, Meta(ge=1, le=1_000)] | None = 1.2


class RolloutTerms(Body, frozen=True, kw_only=True):
    #: Percent of the baseline's conversations (or users, …) that the candidate gets, one step after the other. A comparison has one.
    steps: Annotated[tuple[Annotated[float, Meta(gt=0, le=100)], ...], Meta(min_length=1, max_length=20)] = (10.0, 50.0, 100.0)
    #: Each step takes at least this long, and at least so many requests of the candidate.
    step_seconds: Annotated[int, Meta(ge=5, le=30 * 86_400)] = 1_800
    step_requests: Annotated[int, Meta(ge=1, le=10**9)] = 500
    guards: RolloutGuards = RolloutGuards()
    #: Compare the two at one share: no steps, and no promotion.
    only_compares: bool = False
    #: When a comparison ends; None: when an administrator ends it.
    until: Moment | None = None


class RolloutPlan(RolloutTerms, frozen=True, omit_defaults=False):
    #: Targets of the route.
    candidate: DocumentName
    baseline: DocumentName


class StartRollout(RolloutTerms, frozen=True):
    route: RouteName
    #: A target of the route. It needs no share yet.
    candidate: DocumentName
    #: None for the target with the largest share.
    baseline: DocumentName | None = None


class RolloutSummary(Body, frozen=True, omit_defaults=False):
    id: UUID
    route: str
    plan: RolloutPlan
    state: RolloutState
    #: Percent of the baseline's conversations that the candidate has now.
    share: float
    #: The position in ``plan.steps``.
    step: int
    step_began_at: Moment
    #: Of the candidate, in this step.
    step_requests: int
    #: Why it has its state; empty while it runs.
    reason: str
    started_at: Moment
    ended_at: Moment | None


class RolloutArm(Body, frozen=True, omit_defaults=False):
    target: str
    requests: int
    #: What 50 % and 95 % of its answers took until their first token, to about 5 %; None without answers.
    first_token_p50_ms: int | None
    first_token_p95_ms: int | None
    #: While it writes; None without answers.
    tokens_per_second: float | None
    #: Upstream money of all requests.
    cost_micro: int
    #: The same for 1,000 tokens, over the requests that count.
    token_cost_micro: float


class RolloutCondition(Body, frozen=True, omit_defaults=False):
    """What the outcomes say about one guard. At most 20 requests of each tenant count every 5 s."""

    #: errors, first_token, thumbs or cost.
    name: str
    #: Of the guard; None if it is not judged.
    margin: float | None
    candidate_bad: int
    candidate_outcomes: int
    baseline_bad: int
    baseline_outcomes: int
    #: Candidate less baseline: of shares, or micro-credits for 1,000 tokens.
    difference: float
    #: The true difference is within this distance with 95 % certainty, whenever one looks; None if nothing is known yet.
    half_width: float | None
    #: If the arms were alike, evidence as strong would come by chance once in so many rollouts.
    evidence: float
    #: In words.
    verdict: str


class RolloutEvent(Body, frozen=True, omit_defaults=False):
    at: Moment
    state: RolloutState
    share: float
    reason: str
    #: The administrator; empty for the gateways.
    author: str


#: Of a chart.
MAX_POINTS = 400


class RolloutInterval(Body, frozen=True, omit_defaults=False):
    """What was known about one guard at a time, as in ``RolloutCondition``."""

    name: str
    candidate_bad: int
    candidate_outcomes: int
    baseline_bad: int
    baseline_outcomes: int
    difference: float
    half_width: float | None


class RolloutPoint(Body, frozen=True, omit_defaults=False):
    at: Moment
    share: float
    arms: tuple[RolloutArm, RolloutArm]
    intervals: tuple[RolloutInterval, ...]


class RolloutDetails(Body, frozen=True, omit_defaults=False):
    rollout: RolloutSummary
    #: Candidate and baseline.
    arms: tuple[RolloutArm, RolloutArm]
    conditions: tuple[RolloutCondition, ...]
    events: tuple[RolloutEvent, ...]
    #: Answers that begin later are late; None if the baseline has had too few so far.
    first_token_limit_ms: int | None
    #: Oldest first; empty unless asked for.
    points: tuple[RolloutPoint, ...] = ()


class ListRollouts(Body, frozen=True):
    """List rollouts, newest first."""

    #: None for all routes.
    route: RouteName | None = None
    only_open: bool = False
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 100


class Rollouts(Body, frozen=True):
    rollouts: tuple[RolloutSummary, ...]


class GetRollout(Body, frozen=True):
    #: The newest of this route, or the one with this id.
    route: RouteName | None = None
    id: UUID | None = None
    #: Include up to MAX_POINTS of its course.
    points: bool = False


class ChangeRollout(Body, frozen=True):
    """Change the open rollout of a route. ``abort`` also ends a comparison."""

    route: RouteName
    action: RolloutAction
    note: Note = ""


#: mesh, default, organization:ID or key:ID.
PolicyName = Annotated[str, Meta(max_length=60, pattern=r"^(mesh|default|(organization|key):[0-9a-f-]{36})\Z")]


class GetPolicy(Body, frozen=True):
    #: None for that of the caller's organization, or of the caller without one.
    name: PolicyName | None = None


class PolicyState(Body, frozen=True, omit_defaults=False):
    name: str
    #: 0 if there has never been one, or if a key's was removed.
    version: int
    #: None if there is none. Only administrators get all guardrails of `mesh` and `default`; others get kinds, actions and moderation.
    policy: PolicyDocument | None
    #: Whether the caller may change it.
    may_change: bool
    #: False: it is done, but the recovery log on disk lacks it for now.
    logged: bool = True


class SetPolicy(Body, frozen=True):
    name: PolicyName
    #: None removes it.
    policy: PolicyDocument | None
    #: Refuse with already_exists unless this is the current version; None for any.
    expected_version: Version | None = None
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


#: Of a text for ``testGuard``.
MAX_GUARD_CHARACTERS = 64 * 1024
MAX_GUARD_MATCHES = 1_000


class GuardText(Body, frozen=True):
    """Find what guardrails would find in a text, without keeping any of it; by default those of the caller."""

    text: Annotated[str, Meta(max_length=MAX_GUARD_CHARACTERS)]
    #: Answers may have other rules than prompts.
    is_answer: bool = False
    organization: TenantId | None = None
    key: KeyId | None = None


class GuardMatch(Body, frozen=True, omit_defaults=False):
    kind: GuardKind
    #: Of the policy's own pattern.
    name: str
    action: GuardAction
    level: str
    #: From 1.
    line: int
    column: int


class GuardTest(Body, frozen=True, omit_defaults=False):
    #: The first 1,000.
    matches: Annotated[tuple[GuardMatch, ...], Meta(max_length=MAX_GUARD_MATCHES)]
    #: The text as it would be passed on; of a refused answer the part before it. Empty for a refused prompt.
    shown: str
    refused: bool


apply_config = Method("gateway.applyConfig", ApplyConfig, AppliedConfig, callers=PEOPLE)
export_config = Method("gateway.exportConfig", ExportConfig, ExportedConfig, callers=PEOPLE)
list_config_versions = Method("gateway.listConfigVersions", ListConfigVersions, ConfigVersions, callers=PEOPLE)
rollback_config = Method("gateway.rollbackConfig", RollbackConfig, AppliedConfig, callers=PEOPLE)
import_environment = Method("gateway.importEnvironment", ImportEnvironment, AppliedConfig, callers=PEOPLE)
list_routes = Method("gateway.listRoutes", ListRoutes, RouteStates, callers=PEOPLE)
try_route = Method("gateway.tryRoute", TryRoute, TriedRoute, callers=PEOPLE)
start_rollout = Method("gateway.startRollout", StartRollout, RolloutSummary, callers=PEOPLE)
list_rollouts = Method("gateway.listRollouts", ListRollouts, Rollouts, callers=PEOPLE)
get_rollout = Method("gateway.getRollout", GetRollout, RolloutDetails, callers=PEOPLE)
change_rollout = Method("gateway.changeRollout", ChangeRollout, RolloutSummary, callers=PEOPLE)
get_policy = Method("gateway.getPolicy", GetPolicy, PolicyState, callers=PEOPLE)
set_policy = Method("gateway.setPolicy", SetPolicy, PolicyState, callers=PEOPLE)
explain_policy = Method("gateway.explainPolicy", ExplainPolicy, PolicyExplanation, callers=PEOPLE)
test_guard = Method("gateway.testGuard", GuardText, GuardTest, callers=PEOPLE)
