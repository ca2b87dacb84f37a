"""gateway: inference requests, models, nodes, and a caller's quota."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import msgspec

from shared import features
from shared.api.auth import Every
from shared.api.generation import Messages, NamedModel, Sampling, ToolCall, ToolCallPart, Usage
from shared.api.inference import PulledModel, PullProgress, PullSource, TokenLogprob
from shared.api.ledger import Account
from shared.api.method import PEOPLE, Body, Method, Nothing, StreamMethod
from shared.api.usage_report import UserUsage
from shared.types import (
    Credential,
    FinishReason,
    LoadPurpose,
    MicroCredits,
    ModelName,
    Moment,
    NodeId,
    PlanName,
    RequestId,
    Role,
    TenantId,
    UserId,
)

MAX_IGNORED_CHARACTERS = 500
ConversationId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
#: Operators can only lower it.
MAX_REQUEST_SECONDS = 3600.0


class InferenceRequest(Sampling, frozen=True, kw_only=True):
    """Has either ``prompt`` or ``messages``; ``system`` is only for a prompt."""

    prompt: str | None = None
    messages: Messages = ()
    system: str | None = None
    #: The answer is the text between ``prompt`` and this. Only with ``raw``.
    suffix: str = ""
    #: None: the default model.
    model: NamedModel | None = None
    #: Conversations with the same id stay at one target of a route; None: recognized by their first messages.
    conversation_id: ConversationId | None = None
    #: Keep the prompt from providers, even if policies allow them.
    forbid_external: bool = False
    #: Run it behind live requests, at the price of batches; None: as the caller's key, plan and policies say.
    flex: bool | None = None
    #: The fields of its HTTP body that had no effect, for the request log.
    ignored_fields: Annotated[str, msgspec.Meta(max_length=MAX_IGNORED_CHARACTERS)] = ""


class Auth(Body, frozen=True):
    #: A key or an access token.
    api_key: Credential | None = None


class Rest(Body, frozen=True):
    """Asks for the part of an answer that its reader missed."""

    #: The sequence number of the last chunk received.
    after: int


class ProcessInferenceRequest(Body, frozen=True):
    request: InferenceRequest
    #: Optional; the call's own credential is the default. Two different credentials are refused.
    auth: Auth = Auth()
    #: Chosen by the caller. Repeating the same request with the same key runs and bills it once.
    idempotency_key: str | None = None
    #: Only with the same request and idempotency key.
    rest: Rest | None = None
    #: Do not use the response cache.
    fresh: bool = False
    #: The reader understands ``InferenceChunk.call_parts``. Otherwise it gets completed calls.
    call_parts: bool = False

    def own_credential(self) -> Credential | None:
        return self.auth.api_key


#: The APIs of vendors. Accounts and nodes have methods of their own.
HTTP_PREFIXES = ("/v1/", *(api.prefix for api in features.http_apis()))
#: What ``serve_http`` serves: these, and uploads of models.
OVER_MESH = (*HTTP_PREFIXES, "/api/models/blobs/")

#: RFC 9110 §7.6.1, and `expect`, which the server that read it has answered. Nothing forwards them.
HOP_BY_HOP = frozenset(
    {b"connection", b"expect", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"}
    | {b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
#: Of each server: it adds its own date and name, and the gateway sets no cookies elsewhere.
NOT_RETURNED = HOP_BY_HOP | {b"date", b"server", b"set-cookie"}
HttpHeaders = tuple[tuple[bytes, bytes], ...]


class HttpRequest(Body, frozen=True):
    """A request to the gateway's HTTP API, for the user of the call: credentials in its headers have no effect."""

    verb: str
    #: Decoded, as ASGI has it. It begins with one of OVER_MESH.
    path: str
    query: bytes = b""
    #: With lowercase names.
    headers: HttpHeaders = ()
    body: bytes = b""


class HttpPart(Body, frozen=True):
    """The next part of the response."""

    body: bytes = b""
    #: The next two are only in the first part.
    status: int = 0
    headers: HttpHeaders = ()


class CancelInference(Body, frozen=True):
    """Cancel the request with this key. Requests with a key do not end when the reader disconnects."""

    idempotency_key: str


class InferenceChunk(Body, frozen=True):
    text: str
    #: Which answer, if the request asked for several.
    answer: int = 0
    #: One per token, if requested.
    logprobs: tuple[TokenLogprob, ...] = ()
    #: Completed calls. The text that the model wrote for them is not in ``text``.
    tool_calls: tuple[ToolCall, ...] = ()
    #: Before the first text: what the request waits for, for users.
    waiting: str = ""
    #: Counts from 1; 0 for a chunk that only has ``waiting``.
    sequence: int = 0
    #: In the first chunk of each call, so that a reader can always name the answer.
    request_id: RequestId | None = None
    #: Thoughts of the model, which come before its answer.
    reasoning: str = ""
    #: Instead of ``tool_calls``, if the request asked for them.
    call_parts: tuple[ToolCallPart, ...] = ()


class InferenceResult(Body, frozen=True, omit_defaults=False):
    request_id: RequestId
    #: As the caller named it, or the default.
    model: ModelName
    finish_reason: FinishReason
    usage: Usage
    response_time_ms: int
    #: From the start of the request at the gateway to the first text.
    first_token_ms: int
    #: One per answer, if the request asked for several.
    finish_reasons: tuple[FinishReason, ...] = ()
    cost_micro: MicroCredits = MicroCredits(0)
    #: The value that max_tokens was reduced to, if credits were short.
    clamped_to: int | None = None
    #: Served from the response cache.
    cached: bool = False
    #: The target of a route that answered; None without a route, or if the policy hides it.
    target: str | None = None
    #: The stop sequence that ended the first answer; None also if the model's server doesn't say.
    stop_sequence: str | None = None
    #: It ran behind live requests, at the price of batches.
    flex: bool = False


class WrittenAnswer(Body, frozen=True):
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""


class InferenceOutcome(InferenceResult, frozen=True, kw_only=True, omit_defaults=False):
    """The whole answer, for stock clients that do not stream."""

    #: These four belong to the first answer.
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    #: The other answers, if the request asked for several.
    others: tuple[WrittenAnswer, ...] = ()

    @classmethod
    def parts_of(cls, item: InferenceChunk) -> Sequence[object]:
        return item.text, item.tool_calls, item.logprobs, item.reasoning

    @classmethod
    def of(cls, items: Sequence[InferenceChunk], end: InferenceResult) -> "InferenceOutcome":
        count = 1 + max((item.answer for item in items), default=0)
        first, *others = (_written([item for item in items if item.answer == number]) for number in range(count))
        return cls(**msgspec.structs.asdict(end), **msgspec.structs.asdict(first), others=tuple(others))


def _written(chunks: Sequence[InferenceChunk]) -> WrittenAnswer:
    return WrittenAnswer(
        "".join(chunk.text for chunk in chunks),
        tuple(call for chunk in chunks for call in chunk.tool_calls),
        tuple(token for chunk in chunks for token in chunk.logprobs),
        "".join(chunk.reasoning for chunk in chunks),
    )


class GetServiceHealth(Body, frozen=True):
    pass


class Check(Body, frozen=True, omit_defaults=False):
    """The state of one thing that a service depends on."""

    name: str
    ok: bool
    #: What is wrong and what to do; if ok, empty or how much is in use.
    detail: str = ""
    #: The service is not ready without it. Otherwise it is degraded.
    needed: bool = True


class ServiceHealth(Body, frozen=True, omit_defaults=False):
    #: "healthy" or "degraded".
    status: str
    checks: tuple[Check, ...]
    workers: int
    models: tuple[ModelName, ...]
    in_flight: int


class GetUserQuota(Body, frozen=True):
    user_id: UserId | None = None


class LimitState(Body, frozen=True, omit_defaults=False):
    #: user, key or model.
    scope: str
    #: A limit of a plan, such as requests_per_hour.
    kind: str
    limit: int
    remaining: int
    #: Until the limit is fully available again.
    resets_in_seconds: float
    #: The model, if that is the scope.
    name: str = ""
    #: Where the limit is set: a setting such as TIER_FREE, "default", or "key". Empty if unknown.
    source: str = ""

    @property
    def used(self) -> int:
        return self.limit - self.remaining


class KeyBudget(Body, frozen=True, omit_defaults=False):
    """The cost limit of one key, if it has one."""

    budget_micro: MicroCredits
    #: In total, or since it was renewed.
    spent_micro: MicroCredits
    #: Held by running requests.
    reserved_micro: MicroCredits
    every: Every | None = None

    @property
    def free_micro(self) -> int:
        """Return how much a new request may cost. Never negative."""
        return max(0, self.budget_micro - self.spent_micro - self.reserved_micro)


#: Stands for "no limit" in ``limit_per_hour``.
NO_LIMIT = 10**9


class NoticeKind(StrEnum):
    #: The plan's tokens are for verified addresses.
    UNVERIFIED = "unverified"
    #: A limit of requests or tokens in a time is used up.
    LIMIT = "limit"
    #: Tokens of the plan and credits, or a budget.
    CREDITS = "credits"
    #: Requests are not refused yet, but the plan may end.
    PAYMENT = "payment"


class AccountNotice(Body, frozen=True, omit_defaults=False):
    """Why the next request of a caller would be refused, and what to do, as the refusal says it."""

    kind: NoticeKind
    message: str
    hint: str = ""


class UserQuota(Body, frozen=True, omit_defaults=False):
    user_id: UserId
    tier: PlanName
    #: NO_LIMIT if the tier has no limit.
    limit_per_hour: int
    used_this_hour: int
    remaining: int
    #: When the oldest counted minute leaves the window; now if nothing is counted.
    resets_at: Moment
    #: All limits that apply to this caller, including per-model limits.
    limits: tuple[LimitState, ...] = ()
    account: Account | None = None
    #: The budget of the calling key; None without one, and for a login.
    key_budget: KeyBudget | None = None
    notices: tuple[AccountNotice, ...] = ()


class ReadUsage(Body, frozen=True):
    tenant_id: TenantId


class EraseStored(Body, frozen=True):
    """Delete what a feature stores of a tenant."""

    tenant_id: TenantId
    feature: Annotated[str, msgspec.Meta(max_length=100)]


class DropStoredItems(Body, frozen=True):
    """Delete the stored items of a tenant's answers."""

    tenant_id: TenantId


class ListModels(Body, frozen=True):
    pass


class ServedModel(Body, frozen=True, omit_defaults=False):
    name: ModelName
    #: The number of live workers with this model; 0 if the first request starts one.
    workers: int
    #: 0 if unknown.
    context_tokens: int
    #: From MODEL_ALIASES.
    aliases: tuple[str, ...] = ()
    #: An embedding model.
    only_embeds: bool = False
    #: External providers that may get its prompts.
    providers: tuple[str, ...] = ()
    #: Where the servers behind it are, as their operators say.
    regions: tuple[str, ...] = ()
    #: What each of its workers can do besides answering text with text.
    abilities: tuple[str, ...] = ()
    #: The model whose adapter this is.
    parent: ModelName | None = None
    #: What the servers behind it call it, if this is an alias of theirs and callers may name served models.
    upstream_models: tuple[str, ...] = ()
    #: Whether coding agents can work with it (``protocol.agent_requirements``).
    suits_agents: bool = False
    #: What is known of that: the tools that it calls, and a context that is too short; empty if it generates no text, or has no worker yet.
    agents_hint: str = ""
    #: The scripted tool calls that it got right, of 50; None: nobody has checked what its workers serve now.
    right_calls: int | None = None


class ServedModels(Body, frozen=True):
    """The default model first."""

    models: tuple[ServedModel, ...]
    #: Why no worker serves one, for signed-in users; empty if one does, or if no worker is known.
    why_none: str = ""
    #: What some workers work without, and how to change that, for signed-in users; empty if nothing.
    warning: str = ""


class LoadOnWorker(Body, frozen=True):
    """For administrators."""

    model: ModelName
    #: A worker's id or a unique prefix; None: the least busy worker that has the model and enough memory.
    worker: NodeId | None = None
    #: Whether to keep the model in memory; None does not change that.
    pin: bool | None = None
    #: What to load the model for; if there is no ``worker``, on every worker that has it. None does not change that.
    purpose: LoadPurpose | None = None


class UnloadOnWorkers(Body, frozen=True):
    """For administrators."""

    model: ModelName
    #: A worker's id or a unique prefix; None: every worker that has the model.
    worker: NodeId | None = None


class ModelPlace(Body, frozen=True, omit_defaults=False):
    """A model on one worker."""

    worker: NodeId
    model: ModelName
    #: loading, ready, unloaded or failed; empty if the worker refused.
    state: str
    #: Why the worker refused, or further information.
    detail: str
    pinned: bool = False
    #: Memory that the model uses or would use; 0 if unknown.
    memory_bytes: int = 0
    #: Of a slot; 0 if unknown.
    context_tokens: int = 0


class ModelPlaces(Body, frozen=True):
    places: tuple[ModelPlace, ...]


class PullOnWorkers(Body, frozen=True):
    """Download a model into the stores of workers. For administrators. Canceling the call ends the downloads; the next one resumes them."""

    #: A URL, hf:, ollama: or oci://.
    source: PullSource
    #: A worker's id or a unique prefix.
    worker: NodeId | None = None
    #: Workers whose certificates have all these labels.
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    #: The name to serve it under; None: named after the source.
    name: ModelName | None = None
    #: Allow HTTP without TLS.
    insecure: bool = False


class WorkerPull(Body, frozen=True):
    """The progress of one worker."""

    worker: NodeId
    progress: PullProgress


class PulledPlace(Body, frozen=True, omit_defaults=False):
    worker: NodeId
    #: None if it failed.
    pulled: PulledModel | None = None
    #: Why it failed.
    detail: str = ""


class PulledPlaces(Body, frozen=True):
    places: tuple[PulledPlace, ...]


class ConsentOnWorker(Body, frozen=True):
    """Let administrators put models on your machine, or don't. For its owner."""

    #: The worker's id or a unique prefix.
    worker: NodeId
    accepts_models: bool


class RemoveFromWorker(Body, frozen=True):
    """Remove a model from a worker's store. The mesh doesn't put it there again until the owner accepts models again. For the worker's
    owner, and administrators."""

    #: The worker's id or a unique prefix.
    worker: NodeId
    model: NamedModel


class Consented(Body, frozen=True):
    worker: NodeId
    accepts_models: bool


class ModelPullRow(Body, frozen=True):
    """A download of a model that is running."""

    model: str
    done_bytes: int
    #: None if unknown.
    total_bytes: int | None
    bytes_per_second: float


class ListNodes(Body, frozen=True):
    pass


class NodeRow(Body, frozen=True, omit_defaults=False):
    """A node as the gateway sees it."""

    id: NodeId
    role: Role
    service: str
    #: The transport: nats; direct, punched or relayed over Hyperswarm; self for the gateway that answers.
    path: str
    alive: bool
    usable: bool
    #: Why it gets no requests; empty if it does.
    why_not: str
    models: tuple[ModelName, ...]
    #: Since when it is alive or gone.
    since: Moment
    version: str
    running: int
    queued: int
    slots: int
    #: To this gateway; null if there is no link.
    round_trip_ms: float | None = None
    #: Known only by its key: it was refused or could not be reached.
    refused: bool = False
    #: From its certificate.
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    #: Its problem with NATS or Hyperswarm, as it reports it, and with its clock; empty if none.
    trouble: str = ""
    pulls: tuple[ModelPullRow, ...] = ()
    #: What it works without, and how to change that; empty if nothing.
    warning: str = ""
    #: Memory for models, of a worker that has none; 0 for others.
    free_bytes: int = 0
    #: Whether administrators may put models on it.
    accepts_models: bool = True
    #: Those of its models that the mesh has put there, and models that were removed, which the mesh doesn't put there again.
    assigned: tuple[ModelName, ...] = ()
    refused_models: tuple[ModelName, ...] = ()
    #: What the owner of its machine may want to know, and is no problem; empty if nothing.
    notice: str = ""

    @property
    def free(self) -> str:
        """Describe a worker that waits for its first model; empty for others."""
        if not (self.alive and self.free_bytes):
            return ""
        return f"free, {self.free_bytes / 10**9:.0f} GB" + ("" if self.accepts_models else ", accepts no models of the mesh")


class NodeRows(Body, frozen=True):
    nodes: tuple[NodeRow, ...]


class PardonNode(Body, frozen=True):
    """End a worker's quarantine for misreporting and clear its strikes, at all gateways."""

    #: Its node id, or a prefix that is unique among workers with strikes.
    node: str


class PardonedNode(Body, frozen=True):
    node: NodeId


class GiveUpPool(Body, frozen=True):
    """No machine of the pool will become ready. Requests that wait for one are refused, and new ones for ``seconds``; 0 ends that."""

    pool: str
    reason: Annotated[str, msgspec.Meta(max_length=500)]
    seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)]


process_inference_request = StreamMethod(
    "gateway.processInferenceRequest",
    ProcessInferenceRequest,
    item=InferenceChunk,
    end=InferenceResult,
    callers=PEOPLE,
    whole=InferenceOutcome,
    takes_long_requests=True,
)
serve_http = StreamMethod("gateway.serveHttp", HttpRequest, item=HttpPart, end=Nothing, callers=PEOPLE, takes_long_requests=True)
cancel_inference = Method("gateway.cancelInference", CancelInference, Nothing, callers=PEOPLE)
get_service_health = Method("gateway.getServiceHealth", GetServiceHealth, ServiceHealth, callers={*PEOPLE, Role.METRICS})
get_user_quota = Method("gateway.getUserQuota", GetUserQuota, UserQuota, callers=PEOPLE)
list_models = Method("gateway.listModels", ListModels, ServedModels, callers=PEOPLE)
load_model = Method("gateway.loadModel", LoadOnWorker, ModelPlaces, callers=PEOPLE)
unload_model = Method("gateway.unloadModel", UnloadOnWorkers, ModelPlaces, callers=PEOPLE)
pull_model = StreamMethod("gateway.pullModel", PullOnWorkers, item=WorkerPull, end=PulledPlaces, callers=PEOPLE)
set_model_consent = Method("gateway.setModelConsent", ConsentOnWorker, Consented, callers=PEOPLE)
remove_model = Method("gateway.removeModel", RemoveFromWorker, Nothing, callers=PEOPLE)
list_nodes = Method("gateway.listNodes", ListNodes, NodeRows, callers={*PEOPLE, Role.METRICS})
give_up_pool = Method("gateway.giveUpPool", GiveUpPool, Nothing, callers={Role.METRICS})
pardon_node = Method("gateway.pardonNode", PardonNode, PardonedNode, callers=PEOPLE)
read_usage = Method("gateway.readUsage", ReadUsage, UserUsage, callers={Role.AUTH})
drop_stored_items = Method("gateway.dropStoredItems", DropStoredItems, Nothing, callers={Role.AUTH})
erase_stored = Method("gateway.eraseStored", EraseStored, Nothing, callers={Role.AUTH})
