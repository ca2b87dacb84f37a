"""The documents of the configuration: routes, policies, plans, limits, prices, models to pull, servers and publishers' keys, as files and
messages write them."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shared import limits
from shared.types import PlanName, TenantId

MAX_ROUTES = 500
MAX_TARGETS = 20
MAX_COPIES = 1000
#: Of the documents that administrators write: policies, and the bytes of all bodies as JSON, so that they fit into one message as YAML.
MAX_POLICIES = 2_000
MAX_CONFIG_BYTES = 512 * 1024
#: Of the documents that people of one tenant write: an organization, or a user with their own requests.
MAX_TENANT_DOCUMENTS = 120
MAX_TENANT_BYTES = 16 * 1024
#: Of all tenants together. Every gateway keeps them in memory, and a change takes it 10 ms for 20,000 documents.
MAX_TENANTS_DOCUMENTS = 20_000
MAX_TENANTS_BYTES = 16 * 1024 * 1024
#: Each worker that takes servers polls each of them every 2 s.
MAX_SERVERS = 32
#: The only document of the kind ``default_model``.
DEFAULT_MODEL = "default"
#: The policy that applies to everyone, and that of organizations and people without their own.
MESH_POLICY = "mesh"
DEFAULT_POLICY = "default"
#: Followed by the id of an organization (or of a user, for the user's own requests) or of a key.
ORGANIZATION_POLICY = "organization:"
KEY_POLICY = "key:"
#: Stands for all providers.
ANY_PROVIDER = "*"
#: Lifetime of cached answers of a route that sets none.
DEFAULT_CACHE_SECONDS = 3600
#: The value for no limit.
UNLIMITED: Literal["unlimited"] = "unlimited"

#: A name in the configuration: the public name of a model or another document.
DocumentName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,99}\Z")]
#: With * at its end, a route is for all names that begin like it.
RouteName = Annotated[str, Meta(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._:/@-]{0,98}[A-Za-z0-9._:/@*-]?)\Z")]
ProviderPrice = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,100}\Z")]
PlanDocumentName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}\Z")]
ServerContext = Annotated[int, Meta(ge=64, le=1 << 30)]
#: Also the provider's name, if prompts leave the operator's machines.
ServerName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}\Z")]
ServedName = Annotated[str, Meta(min_length=1, max_length=200)]
TokenCount = Annotated[int, Meta(ge=0, le=10**9)]
Limit = Annotated[int, Meta(ge=1, le=10**12)] | Literal["unlimited"]
TokenLimit = Annotated[int, Meta(ge=0, le=10**12)] | Literal["unlimited"]
OrganizationId = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
_AMOUNT = r"[0-9]{1,6}(\.[0-9]{1,6})?"
_Number = Annotated[float, Meta(ge=0, lt=10**6)]
#: Credits with at most six decimals, as text or as a number.
Money = Annotated[str, Meta(pattern=rf"^{_AMOUNT}\Z")] | _Number
#: A Literal beside the pattern would have to match it, too.
MoneyLimit = Annotated[str, Meta(pattern=rf"^({_AMOUNT}|unlimited)\Z")] | _Number


def is_pattern(route_name: str) -> bool:
    return route_name.endswith("*")


class ConfigKind(StrEnum):
    ROUTE = "route"
    POLICY = "policy"
    PLAN = "plan"
    MODEL_LIMIT = "model_limit"
    DEFAULT_MODEL = "default_model"
    UPSTREAM_PRICE = "upstream_price"
    DEPLOYMENT = "deployment"
    CATALOG_MODEL = "catalog_model"
    SERVER = "server"
    TRUST = "trust"


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
    tiers: tuple[PlanName, ...] = ()
    #: Ids of organizations, or of users for their own requests; empty for all.
    organizations: Annotated[tuple[OrganizationId, ...], Meta(max_length=100)] = ()
    #: Such as `Mon-Fri 08:00-18:00 Europe/Berlin`; None for always.
    hours: Annotated[str, Meta(max_length=100)] | None = None
    #: Names of API keys; empty for all callers.
    keys_named: Annotated[tuple[str, ...], Meta(max_length=100)] = ()


class TargetTask(StrEnum):
    """What a model does, if it doesn't answer prompts."""

    MODERATION = "moderation"


class ModerationFormat(StrEnum):
    """How a chat model writes whether a text is harmful."""

    #: `safe` or `unsafe` in the first line, the codes of the categories in the second.
    LLAMA_GUARD = "llama-guard"


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
    #: moderation: it checks texts for `POST /v1/moderations`. All targets of a route have the same task.
    task: TargetTask | None = None
    #: Of a chat model that moderates. None: its upstream has `/v1/moderations`.
    format: ModerationFormat | None = None

    @property
    def moderates(self) -> bool:
        return self.task is TargetTask.MODERATION


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
    #: same_request: equal requests of an organization are answered from the response cache, also without temperature 0 or a seed.
    cache: Literal["same_request"] | None = None
    #: Lifetime of these answers, with ``cache``; by default an hour.
    cache_seconds: Annotated[int, Meta(ge=1, le=86_400)] | None = None

    @property
    def kept_seconds(self) -> int | None:
        """Return how long answers are kept for equal requests; None if only deterministic requests are answered from the cache."""
        return None if self.cache is None else self.cache_seconds or DEFAULT_CACHE_SECONDS

    @property
    def is_alias(self) -> bool:
        """Whether it only gives a served model another name."""
        return self == RouteDocument(targets=(TargetDocument(name=self.targets[0].name, model=self.targets[0].model),))


class Machines(StrEnum):
    """Machines that may see a tenant's prompts, from the fewest to the most: anyone who runs a worker can read the prompts it answers."""

    #: The tenant's.
    OWN = "own"
    #: Also the operator's.
    INTERNAL = "internal"
    #: Also those that an administrator has labeled trusted=yes.
    TRUSTED = "trusted"
    #: All that their owners don't keep to themselves.
    GROUP = "group"

    def is_narrower_than(self, other: "Machines") -> bool:
        order = tuple(Machines)
        return order.index(self) < order.index(other)


class Flex(StrEnum):
    """Whether requests may run behind live ones, at the price of batches (`service_tier: flex`)."""

    #: All do that, and live ones are refused.
    ONLY = "only"
    ALLOWED = "allowed"
    NEVER = "never"


class StoredPrompts(StrEnum):
    """How long prompts of responses are kept, for requests that continue them."""

    NEVER = "never"
    DAY = "24h"


#: A name, in which * stands for any characters.
NamePattern = Annotated[str, Meta(pattern=r"^[A-Za-z0-9*?][A-Za-z0-9._:/@*?-]{0,99}\Z")]
NamePatterns = Annotated[tuple[NamePattern, ...], Meta(max_length=200)]
Provider = Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9_-]{0,31}|\*)\Z")]


class GuardKind(StrEnum):
    """What a guardrail finds. If matches overlap, the first of these counts."""

    SECRET = "secret"  # noqa: S105 - a kind
    CARD = "card"
    IBAN = "iban"
    NATIONAL_ID = "national_id"
    EMAIL = "email"
    PHONE = "phone"
    IP = "ip"
    #: The policy's own patterns.
    OWN = "own"


class GuardAction(StrEnum):
    """What happens with it, from the mildest to the strictest."""

    OFF = "off"
    #: Counted.
    REPORT = "report"
    #: Replaced by its kind in brackets.
    MASK = "mask"
    #: The request is refused; an answer ends before it.
    REFUSE = "refuse"

    def is_stricter_than(self, other: "GuardAction") -> bool:
        order = tuple(GuardAction)
        return order.index(self) > order.index(other)


#: ISO 3166.
Country = Annotated[str, Meta(pattern=r"^[A-Z]{2}\Z")]


class GuardPattern(Document, frozen=True):
    """A regular expression in RE2's syntax."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}\Z")]
    pattern: Annotated[str, Meta(min_length=1, max_length=500)]
    #: Longer texts are not found. That many characters of a streamed answer are held back.
    max_length: Annotated[int, Meta(ge=1, le=256)]


class ModerationRule(Document, frozen=True):
    """A check for harmful texts by a moderation model. The checks of all levels apply."""

    #: Its targets have the task moderation.
    route: DocumentName
    #: report: counted; refuse: the request is refused.
    prompt: Literal["off", "report", "refuse"] = "off"
    #: refuse: nothing is sent before the whole answer has been checked; what is harmful is not sent at all.
    answer: Literal["off", "report", "refuse"] = "off"
    #: `violence` includes `violence/graphic`; empty for all that the model knows.
    categories: Annotated[tuple[Annotated[str, Meta(pattern=r"^[a-z][a-z0-9/_-]{0,63}\Z")], ...], Meta(max_length=50)] = ()
    #: The lowest score of a category that counts; None: what the model itself flags.
    threshold: Annotated[float, Meta(gt=0, le=1)] | None = None
    #: Where this refuses: what happens if a text can't be checked.
    on_error: Literal["refuse", "allow"] = "refuse"


class GuardDocument(Document, frozen=True):
    """What happens with personal data, secrets and harmful texts. A missing kind is off, unless a level above has it."""

    prompt: dict[GuardKind, GuardAction] = {}
    answer: dict[GuardKind, GuardAction] = {}
    #: Whose phone numbers without a country code, and whose national numbers are found.
    countries: Annotated[tuple[Country, ...], Meta(max_length=20)] = ()
    patterns: Annotated[tuple[GuardPattern, ...], Meta(max_length=50)] = ()
    #: Exact texts that are never found, if every level with guardrails lists them.
    allow: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(max_length=200)] = ()
    #: Whether loopback, private and documentation addresses are found.
    internal_ips: bool = False
    moderation: ModerationRule | None = None


class PriceCeiling(Document, frozen=True):
    """What callers may pay for a million tokens."""

    input: Money | None = None
    output: Money | None = None


class PolicyDocument(Document, frozen=True):
    """What callers may use, and who may see their prompts. A missing rule adds nothing to the rules of the levels above."""

    #: Providers that may get prompts; * for all. A provider must be listed by ``mesh``, and by the organization or else ``default``;
    #: a missing list there is an empty one.
    external: Annotated[tuple[Provider, ...], Meta(max_length=100)] | None = None
    machines: Machines | None = None
    #: Names that callers may send.
    models: NamePatterns | None = None
    #: Served models behind them.
    targets: NamePatterns | None = None
    #: Whether callers may name served models that no route names.
    direct_models: bool | None = None
    #: More expensive targets are left out.
    max_price: PriceCeiling | None = None
    #: Whether answers say which target was chosen.
    show_targets: bool | None = None
    #: Whether the items of answers are kept for an hour, for callers that refer to them.
    store_items: bool | None = None
    #: How long prompts of responses are kept, so that `previous_response_id` can continue them. Only ``mesh`` can allow it.
    stored_prompts: StoredPrompts | None = None
    #: Whether requests may, or must, run behind live ones at the price of batches.
    flex: Flex | None = None
    guard: GuardDocument | None = None


@limits.fields(Limit | None)
class PlanDocument(Document, frozen=True):
    """The limits of a plan. A missing number is the built-in default. A plan that isn't built in has the limits of `pro` with a fee, those
    of `free` without one, and the tokens of `free`."""

    #: Tokens that it includes each month, while MONEY is on.
    included_tokens: TokenLimit | None = None
    #: All stored files together.
    file_bytes: TokenLimit | None = None
    #: Of all batches together, without those that have a result.
    queued_lines: TokenLimit | None = None
    #: For a month, in the mesh's currency.
    fee: Money | None = None
    #: How much usage beyond the tokens is billed at the end of a month; 0: it needs prepaid credits.
    overage_limit: MoneyLimit | None = None
    #: As in a policy.
    flex: Flex | None = None
    #: Whether people may choose it.
    for_sale: bool | None = None
    #: The monthly price at Stripe, such as `price_1N…`, and a metered price for usage beyond the tokens.
    stripe_price: ProviderPrice | None = None
    stripe_meter: ProviderPrice | None = None
    #: The monthly price at Paddle, such as `pri_01h…`.
    paddle_price: ProviderPrice | None = None


@limits.fields(Limit | None)
class ModelLimitDocument(Document, frozen=True):
    """The limits of a public model over all its callers. A missing number is no limit."""


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


class DeploymentDocument(Document, frozen=True):
    """On which machines a model is. The document's name is the name under which it is served."""

    #: As `aicli models pull` takes it: hf:, ollama:, oci:// or a URL. Empty for a model that was pushed: then the document has its name, or
    #: that of one of its channels or versions.
    source: Annotated[str, Meta(max_length=2000)] = ""
    #: Whose a pushed model is; none: the mesh's. Another one's is not put on machines.
    organization: TenantId | None = None
    copies: Annotated[int, Meta(ge=1, le=MAX_COPIES)] | Literal["all"] = 1
    #: Machines that have all of these.
    labels: Annotated[dict[str, str], Meta(max_length=10)] = {}
    #: Beginnings of the ids of machines; empty for any.
    nodes: Annotated[tuple[Annotated[str, Meta(min_length=4, max_length=60)], ...], Meta(max_length=100)] = ()
    #: Load it at once, not on the first request.
    preload: bool = False
    #: Nothing is fetched, loaded or removed.
    paused: bool = False
    #: None: as the settings of each machine say.
    context: Annotated[int, Meta(ge=64, le=1_048_576)] | None = None
    slots: Annotated[int, Meta(ge=1, le=256)] | None = None


class CatalogUse(StrEnum):
    """What people use a model for."""

    CHAT = "chat"
    CODE = "code"
    #: It sees images.
    IMAGES = "images"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"


class CatalogDocument(Document, frozen=True):
    """A model that people can pull. `aicli models catalog refresh` asks its hub for the size, SHA-256 and context."""

    #: As `aicli models pull` takes it; it names the first of the quantizations.
    source: Annotated[str, Meta(pattern=r"^(hf:|ollama:|oci:)[!-~]{1,300}\Z")]
    parameters: Annotated[int, Meta(ge=1, le=10**13)]
    quantizations: Annotated[tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9_]{1,20}\Z")], ...], Meta(min_length=1, max_length=20)]
    #: SPDX.
    license: Annotated[str, Meta(max_length=100)] = ""
    uses: Annotated[tuple[CatalogUse, ...], Meta(max_length=len(CatalogUse))] = (CatalogUse.CHAT,)
    tools: bool = False
    aliases: Annotated[tuple[DocumentName, ...], Meta(max_length=10)] = ()
    #: Layers, and the keys of a token in one of them: heads of keys times their size.
    layers: Annotated[int, Meta(ge=1, le=1_000)] | None = None
    key_width: Annotated[int, Meta(ge=0, le=10**6)] | None = None
    #: In tokens.
    context: TokenCount | None = None
    #: Bytes of all files. Without a SHA-256, nobody has asked the hub.
    size: Annotated[int, Meta(ge=1, le=2**50)] | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")] | None = None


class ServerKind(StrEnum):
    """What a server speaks."""

    #: OpenAI's API; what else it can do is recognized by its answers.
    OPENAI = "openai"
    VLLM = "vllm"
    #: Ollama's own API.
    OLLAMA = "ollama"


class ServerDocument(Document, frozen=True):
    """A server of another program. Workers with REMOTE_MODEL_HOSTS serve its models."""

    #: For OpenAI's API with its version, as in https://api.openai.com/v1.
    url: Annotated[str, Meta(min_length=1, max_length=2_000)]
    kind: ServerKind = ServerKind.OPENAI
    #: Its key, which the gateway replaces by ``sealed_key``. None: it has none, or for the same URL, the stored one.
    key: Annotated[str, Meta(min_length=1, max_length=8_192)] | None = None
    #: Its key, encrypted for this name and URL.
    sealed_key: Annotated[bytes, Meta(max_length=12_000)] | None = None
    #: Which of its models, by its own names; empty for all.
    models: Annotated[tuple[ServedName, ...], Meta(max_length=256)] = ()
    #: The context of its models in tokens, and whether they call tools; None: as its list of models says.
    context: ServerContext | None = None
    tools: bool | None = None


class TrustMode(StrEnum):
    OFF = "off"
    #: What nobody trusted has signed is loaded, with a warning.
    WARN = "warn"
    #: It is not loaded.
    ENFORCE = "enforce"


class TrustDocument(Document, frozen=True):
    """Who signs the models of the document's name, or with * at its end, of all names that begin like it. The longest name counts."""

    mode: TrustMode
    #: Public keys in PEM, for P-256, P-384 or P-521. Any of them will do.
    keys: Annotated[tuple[Annotated[str, Meta(max_length=1_000)], ...], Meta(max_length=20)] = ()


#: The body of each kind, and the key of the file that holds its documents by name; ``default_model`` is only a name there.
BODIES: dict[ConfigKind, type[Document]] = {
    ConfigKind.ROUTE: RouteDocument,
    ConfigKind.POLICY: PolicyDocument,
    ConfigKind.PLAN: PlanDocument,
    ConfigKind.MODEL_LIMIT: ModelLimitDocument,
    ConfigKind.DEFAULT_MODEL: DefaultModelDocument,
    ConfigKind.UPSTREAM_PRICE: UpstreamPriceDocument,
    ConfigKind.DEPLOYMENT: DeploymentDocument,
    ConfigKind.CATALOG_MODEL: CatalogDocument,
    ConfigKind.SERVER: ServerDocument,
    ConfigKind.TRUST: TrustDocument,
}
#: Kinds that narrow what callers may use, and where prompts go. If a gateway can't read the current version of such a document, it refuses
#: the document's callers: an older version may be laxer. Of the others, it uses the newest version that it can read.
RESTRICTING = frozenset({ConfigKind.POLICY, ConfigKind.PLAN, ConfigKind.MODEL_LIMIT, ConfigKind.TRUST, ConfigKind.ROUTE, ConfigKind.SERVER})
SECTIONS: dict[str, ConfigKind] = {
    "routes": ConfigKind.ROUTE,
    "policies": ConfigKind.POLICY,
    "plans": ConfigKind.PLAN,
    "model_limits": ConfigKind.MODEL_LIMIT,
    "default_model": ConfigKind.DEFAULT_MODEL,
    "upstream_prices": ConfigKind.UPSTREAM_PRICE,
    "deployments": ConfigKind.DEPLOYMENT,
    "catalog": ConfigKind.CATALOG_MODEL,
    "servers": ConfigKind.SERVER,
    "trust": ConfigKind.TRUST,
}
#: Kinds whose documents have fixed names.
FIXED_NAMES: dict[ConfigKind, tuple[str, ...]] = {
    ConfigKind.POLICY: (MESH_POLICY, DEFAULT_POLICY),
    ConfigKind.DEFAULT_MODEL: (DEFAULT_MODEL,),
}
#: And names that begin with one of these, followed by an id.
NAME_PREFIXES: dict[ConfigKind, tuple[str, ...]] = {ConfigKind.POLICY: (ORGANIZATION_POLICY, KEY_POLICY)}
