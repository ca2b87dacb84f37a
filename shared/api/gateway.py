"""gateway: the door for inference, and what a caller may still use."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from shared.api.generation import ChatMessage, Sampling, ToolCall, Usage
from shared.api.inference import TokenLogprob
from shared.api.ledger import Account
from shared.api.method import Body, Method, Nothing, StreamMethod
from shared.api.usage_report import UserUsage
from shared.types import Credential, FinishReason, MicroCredits, ModelName, NodeId, RequestId, Role, TenantId, Tier, UserId

PEOPLE = {Role.CLIENT, Role.WEB, Role.OPERATOR}


class InferenceRequest(Sampling, frozen=True, kw_only=True):
    """``prompt`` or ``messages``, one of them; ``system`` goes with a prompt."""

    prompt: str | None = None
    messages: tuple[ChatMessage, ...] = ()
    system: str | None = None
    #: None means the default model.
    model: ModelName | None = None


class Auth(Body, frozen=True):
    #: A key, or an access token.
    api_key: Credential | None = None


class Rest(Body, frozen=True):
    """What is left of an answer that its reader lost."""

    #: The number of the last chunk that it has.
    after: int


class ProcessInferenceRequest(Body, frozen=True):
    request: InferenceRequest
    #: The seed's second argument; without it the credential of the call itself counts. Two that differ are refused.
    auth: Auth = Auth()
    #: Chosen by the caller: the same request under the same key again is answered once and paid once.
    idempotency_key: str | None = None
    #: With the same request and the same idempotency key.
    rest: Rest | None = None
    #: Made now: not from the response cache, nor into it.
    fresh: bool = False

    def own_credential(self) -> Credential | None:
        return self.auth.api_key


class CancelInference(Body, frozen=True):
    """Nobody wants the rest of what the caller asked under this key: a request under a key does not end because its reader left."""

    idempotency_key: str


class InferenceChunk(Body, frozen=True):
    text: str
    #: Which of the answers, where more than one was asked for.
    answer: int = 0
    #: Of the tokens behind it, where they were asked for.
    logprobs: tuple[TokenLogprob, ...] = ()
    #: Calls that are complete now; what the model wrote for them is not in ``text``.
    tool_calls: tuple[ToolCall, ...] = ()
    #: Before the first text: what the answer waits for, for people.
    waiting: str = ""
    #: Its number, from 1 on without a gap; 0 for what only says what the answer waits for.
    sequence: int = 0
    #: In the first one that a call brings: who reads no further than this can still name the answer.
    request_id: RequestId | None = None


class InferenceResult(Body, frozen=True, omit_defaults=False):
    request_id: RequestId
    #: The model that answered, after aliases.
    model: ModelName
    finish_reason: FinishReason
    usage: Usage
    response_time_ms: int
    #: From the gateway's start of the request to the first text.
    first_token_ms: int
    #: Of every answer, where more than one was asked for.
    finish_reasons: tuple[FinishReason, ...] = ()
    cost_micro: MicroCredits = MicroCredits(0)
    #: What max_tokens was lowered to, because the credits did not reach for more; None where they did.
    clamped_to: int | None = None
    #: Taken from an answer that was given before.
    cached: bool = False


class WrittenAnswer(Body, frozen=True):
    """What the model wrote for one answer."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class InferenceOutcome(InferenceResult, frozen=True, kw_only=True, omit_defaults=False):
    """The whole answer and how it ended, for stock clients that do not ask for a stream."""

    #: These three are of the first answer.
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    #: The second answer and those behind it, where more than one was asked for.
    others: tuple[WrittenAnswer, ...] = ()

    @classmethod
    def parts_of(cls, item: InferenceChunk) -> Sequence[object]:
        return item.text, item.tool_calls, item.logprobs

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
    )


class GetServiceHealth(Body, frozen=True):
    pass


class Check(Body, frozen=True, omit_defaults=False):
    """One thing that a service needs, and whether it is there."""

    name: str
    ok: bool
    #: What is wrong and what to do; empty when nothing is.
    detail: str = ""
    #: Whether the service is of no use without it; otherwise it is degraded then, and ready.
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
    """One limit and how far it is used."""

    #: user, key or model.
    scope: str
    #: requests_per_hour, requests_per_minute, tokens_per_minute or concurrency.
    kind: str
    limit: int
    remaining: int
    #: Until all of it is there again.
    resets_in_seconds: float
    #: The model, where that is the scope.
    name: str = ""
    #: The setting that it comes from, such as TIER_FREE; "default", or "key" for the key's own. Empty where the gateway does not say.
    source: str = ""


class KeyBudget(Body, frozen=True, omit_defaults=False):
    """What all requests of one key may cost together, where the key has such a limit."""

    budget_micro: MicroCredits
    spent_micro: MicroCredits
    #: Held by requests that run now.
    reserved_micro: MicroCredits

    @property
    def free_micro(self) -> int:
        """What a new request may still hold; 0 also where the budget was overdrawn."""
        return max(0, self.budget_micro - self.spent_micro - self.reserved_micro)


#: The limit an hour of a tier that has none.
NO_LIMIT = 10**9


class UserQuota(Body, frozen=True, omit_defaults=False):
    user_id: UserId
    tier: Tier
    #: NO_LIMIT where the tier has none.
    limit_per_hour: int
    used_this_hour: int
    remaining: int
    #: When the oldest counted minute leaves the window; now if nothing is counted.
    resets_at: datetime
    #: Every limit that requests of this caller count against, those of models included.
    limits: tuple[LimitState, ...] = ()
    account: Account | None = None
    #: Of the key that asks; None where it has none, and for a login.
    key_budget: KeyBudget | None = None


class ReadUsage(Body, frozen=True):
    tenant_id: TenantId


class ListModels(Body, frozen=True):
    pass


class ServedModel(Body, frozen=True, omit_defaults=False):
    name: ModelName
    #: How many live workers serve it.
    workers: int
    context_tokens: int
    #: The names that MODEL_ALIASES gives it.
    aliases: tuple[str, ...] = ()
    #: It gives vectors and no answers.
    only_embeds: bool = False


class ServedModels(Body, frozen=True):
    """The default model first."""

    models: tuple[ServedModel, ...]


class LoadOnWorker(Body, frozen=True):
    """For administrators."""

    model: ModelName
    #: A worker's id, or a beginning of it; None: the least busy one that has the model and room for it.
    worker: NodeId | None = None
    #: Whether it shall stay in memory from now on; None leaves that as it is.
    pin: bool | None = None


class UnloadOnWorkers(Body, frozen=True):
    """For administrators."""

    model: ModelName
    #: A worker's id, or a beginning of it; None: every worker that has the model.
    worker: NodeId | None = None


class ModelPlace(Body, frozen=True, omit_defaults=False):
    """A model on one worker."""

    worker: NodeId
    model: ModelName
    #: One of loading, ready, unloaded, failed; empty where the worker did not do what was asked.
    state: str
    #: Why it did not, or what there is to know.
    detail: str
    pinned: bool = False
    #: What it takes in memory, or would take; 0 where that is not known.
    memory_bytes: int = 0


class ModelPlaces(Body, frozen=True):
    places: tuple[ModelPlace, ...]


class ListNodes(Body, frozen=True):
    pass


class NodeRow(Body, frozen=True, omit_defaults=False):
    """A node as the gateway sees it."""

    id: NodeId
    role: Role
    service: str
    #: How it is reached: nats; direct, punched or relayed over Hyperswarm; self for the gateway that answers.
    path: str
    alive: bool
    usable: bool
    #: Why it is not used; empty when it is.
    why_not: str
    models: tuple[ModelName, ...]
    #: Alive, or gone, since then.
    since: datetime
    version: str
    running: int
    queued: int
    slots: int
    #: To this gateway; null where there is no link to measure it on.
    round_trip_ms: float | None = None
    #: It is known by its key alone: it was not let in, or could not be reached.
    refused: bool = False
    #: By its certificate, for routing and for people.
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    #: What is wrong with NATS or Hyperswarm there, in its own words, while it can still be reached; empty when nothing is.
    trouble: str = ""


class NodeRows(Body, frozen=True):
    nodes: tuple[NodeRow, ...]


class PardonNode(Body, frozen=True):
    """End the quarantine of a worker that told wrong numbers, and forget its strikes, at all gateways."""

    #: Its node id, or a beginning of it that no other worker with strikes has.
    node: str


class PardonedNode(Body, frozen=True):
    node: NodeId


process_inference_request = StreamMethod(
    "gateway.processInferenceRequest",
    ProcessInferenceRequest,
    item=InferenceChunk,
    end=InferenceResult,
    callers=PEOPLE,
    whole=InferenceOutcome,
)
cancel_inference = Method("gateway.cancelInference", CancelInference, Nothing, callers=PEOPLE)
get_service_health = Method("gateway.getServiceHealth", GetServiceHealth, ServiceHealth, callers={*PEOPLE, Role.METRICS})
get_user_quota = Method("gateway.getUserQuota", GetUserQuota, UserQuota, callers=PEOPLE)
list_models = Method("gateway.listModels", ListModels, ServedModels, callers=PEOPLE)
load_model = Method("gateway.loadModel", LoadOnWorker, ModelPlaces, callers=PEOPLE)
unload_model = Method("gateway.unloadModel", UnloadOnWorkers, ModelPlaces, callers=PEOPLE)
list_nodes = Method("gateway.listNodes", ListNodes, NodeRows, callers={*PEOPLE, Role.METRICS})
pardon_node = Method("gateway.pardonNode", PardonNode, PardonedNode, callers=PEOPLE)
read_usage = Method("gateway.readUsage", ReadUsage, UserUsage, callers={Role.AUTH})
