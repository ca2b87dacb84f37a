"""Reads the gateway's settings from the environment, and shows them to administrators."""

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from services.gateway.facts import tiers
from services.gateway.facts.plan_offers import Seller
from services.gateway.facts.provider_settings import LIVE_KEYS, ProviderSettings
from services.gateway.facts.tiers import TierPlan, WithoutValkey
from shared import client_address, model_sources, node
from shared.api import service_settings as api
from shared.api.billing import Party
from shared.api.gateway import MAX_REQUEST_SECONDS
from shared.api.generation import MAX_IMAGES
from shared.api.ledger import MICRO
from shared.config import Port, Variable
from shared.config_documents import Provider
from shared.limits import BY_NAME
from shared.node.settings import READ_URL, Migrate, ReadLagSeconds, list_settings
from shared.rpc import RpcCall, serves
from shared.stores import object_credentials, replica_files
from shared.types import ModelName, PlanName, Tier

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
_NUMBERS = ", ".join(tiers.NUMBERS)
#: For settings that become documents.
_SEEDS = ". Written to the configuration at start, unless somebody edited it there: see `aicli admin config`"
_OLD_RATE_LIMIT = "if it is set, there is no limit per minute unless TIER_… sets one. Overridden by"


class GatewaySettings(node.PublicNodeSettings, frozen=True, kw_only=True):
    SERVICE = "gateway"
    port: Annotated[Port, Variable("GATEWAY_SERVICE_PORT", "the port of the public HTTP API")] = 3002
    database_url: Annotated[str, Variable("DATABASE_URL", "PostgreSQL", secret=True, override="GATEWAY_DATABASE_URL")]
    database_read_url: Annotated[str | None, Variable("DATABASE_READ_URL", READ_URL, secret=True, override="GATEWAY_DATABASE_READ_URL")] = (
        None
    )
    database_read_lag_seconds: ReadLagSeconds = 10.0
    migrate: Migrate = "on"
    database_pool: Annotated[int, Meta(ge=1, le=100), Variable("DATABASE_POOL", "maximum connections to PostgreSQL per replica")] = 10
    redis_url: Annotated[str, Variable("REDIS_URL", "Redis or Valkey, Sentinel or cluster, for the limits", secret=True)]
    response_cache: Annotated[
        Literal["on", "asked", "off"],
        Variable("RESPONSE_CACHE", "on: cache answers to requests with temperature 0 or a seed; asked: with `X-Cache: on`; off: never"),
    ] = "on"
    response_cache_seconds: Annotated[float, Meta(gt=0, le=86400), Variable("RESPONSE_CACHE_SECONDS", "lifetime of a cached answer")] = 3600
    response_cache_megabytes: Annotated[
        int,
        Meta(ge=1, le=10_000),
        Variable("RESPONSE_CACHE_MEGABYTES", "limit for all cached answers; Valkey's own limit must leave room for them"),
    ] = 64
    stored_items_megabytes: Annotated[
        int,
        Meta(ge=1, le=10_000),
        Variable("STORED_ITEMS_MEGABYTES", "limit for all stored items of responses; Valkey's own limit must leave room for them"),
    ] = 128
    image_max_count: Annotated[int, Meta(ge=0, le=MAX_IMAGES), Variable("IMAGE_MAX_COUNT", "maximum number of images per request")] = (
        MAX_IMAGES
    )
    image_max_bytes: Annotated[
        int,
        Meta(ge=1, le=15 * 1024 * 1024),
        Variable("IMAGE_MAX_BYTES", "maximum bytes of all images of a request, before base64"),
    ] = 12 * 1024 * 1024
    prompt_hash_secret: Annotated[
        str,
        Meta(min_length=16),
        Variable("PROMPT_HASH_SECRET", "key of the HMAC that replaces a prompt in request_logs, at least 16 characters", secret=True),
    ]
    request_log_days: Annotated[
        int, Meta(ge=1, le=36500), Variable("REQUEST_LOG_DAYS", "retention of the request log in days; daily sums are kept")
    ] = 90
    web_hop_secret: client_address.Secret = None
    cors_origins: Annotated[
        tuple[str, ...],
        Variable("CORS_ORIGINS", "websites whose pages may call /v1 and /api with a key: https://example.org, separated by commas; or *"),
    ] = ()
    default_rate_limit: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Variable(
            "DEFAULT_RATE_LIMIT", f"requests per hour for a user of the free tier, by default 100; {_OLD_RATE_LIMIT} TIER_FREE{_SEEDS}"
        ),
    ] = None
    premium_rate_limit: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Variable(
            "PREMIUM_RATE_LIMIT", f"requests per hour for a user of the pro tier, by default 1000; {_OLD_RATE_LIMIT} TIER_PRO{_SEEDS}"
        ),
    ] = None
    tier_free: Annotated[
        dict[str, str],
        Variable(
            "TIER_FREE", f"limits of a user of the free tier: {_NUMBERS}, as name=number or name=unlimited, separated by commas{_SEEDS}"
        ),
    ] = msgspec.field(default_factory=dict)
    tier_pro: Annotated[dict[str, str], Variable("TIER_PRO", "the same for the pro tier")] = msgspec.field(default_factory=dict)
    tier_enterprise: Annotated[dict[str, str], Variable("TIER_ENTERPRISE", "the same for the enterprise tier, by default unlimited")] = (
        msgspec.field(default_factory=dict)
    )
    model_limits: Annotated[
        dict[str, str],
        Variable("MODEL_LIMITS", f"limits of a model over all its users: smollm2.requests_per_minute=600,smollm2.concurrency=32{_SEEDS}"),
    ] = msgspec.field(default_factory=dict)
    limiter_without_valkey: Annotated[
        WithoutValkey,
        Variable(
            "LIMITER_WITHOUT_VALKEY",
            "while Valkey is down: each gateway counts its share (degrade), nothing is counted (open), or requests get 503 (closed)",
        ),
    ] = "degrade"
    model_aliases: Annotated[dict[str, str], Variable("MODEL_ALIASES", f"aliases of models: alias=model, separated by commas{_SEEDS}")] = (
        msgspec.field(default_factory=lambda: {"llama3": "smollm2"})
    )
    default_model: Annotated[
        str | None, Variable("DEFAULT_MODEL", f"the model for requests that name none; by default the first served one{_SEEDS}")
    ] = None
    journal_file: Annotated[
        Path | None,
        Variable(
            "JOURNAL_FILE",
            "stores ended requests while PostgreSQL is down; by default beside MESH_STATE_FILE. Replicas that share a volume use"
            " /folder/{node}/name, and adopt the files of replicas that are gone",
        ),
    ] = None
    recovery_log_dir: Annotated[
        Path | None,
        Variable(
            "RECOVERY_LOG_DIR",
            "folder for the signed recovery log; without it, a restored database forgets paid credits, invoices and policies",
        ),
    ] = None
    price_per_input_token: Annotated[
        Decimal,
        Variable("PRICE_PER_INPUT_TOKEN", "in credits: the first price of models without their own; see `aicli admin prices`"),
    ] = Decimal("0.0001")
    money: Annotated[
        Literal["on", "off"],
        Variable("MONEY", "on: plans include tokens, and what is beyond them is paid from the balance; off: costs are only recorded"),
    ] = "off"
    currency: Annotated[
        str, Meta(pattern=r"^[A-Z]{3}\Z"), Variable("CURRENCY", "what a credit is worth, and the currency of plans and invoices: ISO 4217")
    ] = "USD"
    seller_name: Annotated[
        str, Meta(max_length=200), Variable("SELLER_NAME", "who writes the invoices; without it, they are numbered as tests")
    ] = ""
    seller_address: Annotated[
        tuple[str, ...],
        Variable("SELLER_ADDRESS", "lines under the seller's name: address, tax number, bank account; separated by commas"),
    ] = ()
    tax_name: Annotated[str, Meta(max_length=40), Variable("TAX_NAME", "the tax on invoices, such as VAT; empty for none")] = ""
    tax_percent: Annotated[Decimal, Variable("TAX_PERCENT", "its rate; prices are without it")] = Decimal(0)
    payments: Annotated[
        Literal["manual", "stripe", "paddle"],
        Variable("PAYMENTS", "who collects payments; manual: you do, for the mesh's own invoices. See docs/howto/billing.md"),
    ] = "manual"
    public_url: Annotated[
        str, Variable("PUBLIC_URL", "the URL of the web pages, where people buy, and to which they return from a payment provider")
    ] = ""
    stripe_secret_key_file: Annotated[Path | None, Variable("STRIPE_SECRET_KEY_FILE", "file with Stripe's secret key, sk_… or rk_…")] = None
    stripe_webhook_secret_file: Annotated[
        Path | None, Variable("STRIPE_WEBHOOK_SECRET_FILE", "file with the signing secret of Stripe's webhook, whsec_…")
    ] = None
    stripe_tax: Annotated[
        Literal["on", "off"], Variable("STRIPE_TAX", "on: Stripe Tax adds taxes in its checkout; see docs/howto/billing.md")
    ] = "off"
    stripe_api_url: Annotated[str | None, Variable("STRIPE_API_URL", "another address of Stripe's API, for tests")] = None
    paddle_api_key_file: Annotated[Path | None, Variable("PADDLE_API_KEY_FILE", "file with Paddle's API key, pdl_…")] = None
    paddle_webhook_secret_file: Annotated[
        Path | None, Variable("PADDLE_WEBHOOK_SECRET_FILE", "file with the secret of Paddle's notification destination, pdl_ntfset_…")
    ] = None
    paddle_api_url: Annotated[
        str | None, Variable("PADDLE_API_URL", "another address of Paddle's API, for tests; by default the key says: sandbox or live")
    ] = None
    price_per_output_token: Annotated[Decimal, Variable("PRICE_PER_OUTPUT_TOKEN", "the same for output tokens")] = Decimal("0.0002")
    queue_seconds: Annotated[
        float, Meta(gt=0, le=600), Variable("QUEUE_SECONDS", "longest wait for a worker; then the request is refused with 503")
    ] = 30
    queue_start_seconds: Annotated[
        float,
        Meta(gt=0, le=3600),
        Variable("QUEUE_START_SECONDS", "longest wait for a worker of a pool to start; it doesn't count towards the request's time limit"),
    ] = 300
    pools_file: Annotated[
        Path | None,
        Variable(
            "POOLS_FILE", "pools.yaml: the pools of workers that can grow and shrink; see docs/howto/autoscaling.md", on_all_replicas=True
        ),
    ] = None
    queue_most: Annotated[
        int,
        Meta(ge=1, le=100_000),
        Variable("QUEUE_MOST", "limit on queued requests, over all users and gateways; others are refused immediately"),
    ] = 1000
    queue_per_user: Annotated[int, Meta(ge=1), Variable("QUEUE_PER_USER", "limit on one user's queued requests, over all gateways")] = 100
    routing_policy: Annotated[
        Literal["group", "trusted"],
        Variable(
            "ROUTING_POLICY",
            "where prompts may run: group, on every enrolled machine; trusted, on the operator's machines, the user's own, and those"
            " labeled trusted=yes by their ticket. A machine labeled shared=no always serves only its owner" + _SEEDS,
        ),
    ] = "group"
    external_providers: Annotated[
        tuple[Provider, ...],
        Variable(
            "EXTERNAL_PROVIDERS", "providers that may get prompts, by name; * for all. `make up` names those of your upstreams" + _SEEDS
        ),
    ] = ()
    upstream_monthly: Annotated[
        float,
        Meta(ge=0, le=10**9),
        Variable(
            "UPSTREAM_MONTHLY", "cost of providers in a month, in credits, from which on the alert upstream_monthly fires; 0 for never"
        ),
    ] = 500.0
    model_hub: Annotated[
        Literal["on", "off"],
        Variable("MODEL_HUB", "on: searches for models, and plans of where they fit, also ask HF_ENDPOINT; off: only the catalog"),
    ] = "on"
    hub_url: model_sources.HubUrl = model_sources.HUB_URL
    model_origin: Annotated[
        str | None,
        Variable(
            "MODEL_ORIGIN",
            "where pushed models are kept: a folder of all gateways, s3://bucket/prefix or gs://bucket/prefix; unset: none can be pushed",
            on_all_replicas=True,
        ),
    ] = None
    model_origin_quota: Annotated[
        int,
        Meta(ge=1, le=1_000_000),
        Variable("MODEL_ORIGIN_QUOTA", "limit for the models and uploads of one account or organization in MODEL_ORIGIN, in GiB"),
    ] = 500
    aws_access_key_id: object_credentials.AwsKeyId = None
    aws_secret_access_key: object_credentials.AwsSecret = None
    aws_session_token: object_credentials.AwsToken = None
    aws_region: object_credentials.AwsRegion = None
    aws_endpoint_url: object_credentials.AwsUrl = None
    google_credentials: object_credentials.GoogleFile = None
    request_timeout_seconds: Annotated[
        float, Meta(gt=0, le=MAX_REQUEST_SECONDS), Variable("REQUEST_TIMEOUT_SECONDS", "time limit for a request")
    ] = 300

    def plans(self) -> dict[Tier, TierPlan]:
        """Return what each tier includes. Raises ValueError if ``mistakes`` reports one."""
        return {tier: tiers.changed(plan, numbers, setting=f"TIER_{tier.name}") for tier, plan, numbers in self._tiers()}

    def model_plans(self) -> dict[ModelName, TierPlan]:
        """Return the limits of models. Raises ValueError like ``plans``."""
        return tiers.of_models(self.model_limits)

    def _mistakes_of_limits(self) -> Iterator[str]:
        for tier, plan, numbers in self._tiers():
            try:
                tiers.changed(plan, numbers)
            except ValueError as error:
                yield f"TIER_{tier.name}: {error}"
        try:
            limited = self.model_plans()
        except ValueError as error:
            yield f"MODEL_LIMITS: {error}"
        else:
            for alias in limited.keys() & self.model_aliases.keys():
                yield f"MODEL_LIMITS: {alias} is an alias of {self.model_aliases[alias]}; limit that model instead"

    def _tiers(self) -> tuple[tuple[Tier, TierPlan, dict[str, str]], ...]:
        free, pro = tiers.DEFAULTS[Tier.FREE], tiers.DEFAULTS[Tier.PRO]
        free = tiers.with_old_setting(free, "DEFAULT_RATE_LIMIT", self.default_rate_limit, self.tier_free)
        pro = tiers.with_old_setting(pro, "PREMIUM_RATE_LIMIT", self.premium_rate_limit, self.tier_pro)
        return (
            (Tier.FREE, free, self.tier_free),
            (Tier.PRO, pro, self.tier_pro),
            (Tier.ENTERPRISE, tiers.DEFAULTS[Tier.ENTERPRISE], self.tier_enterprise),
        )

    @property
    def start_seconds(self) -> float:
        """Return how long a request may wait for a worker to start; without pools, none is started."""
        return 0.0 if self.pools_file is None else self.queue_start_seconds

    @property
    def journal(self) -> Path:
        return self.journal_file or self.state_file.with_suffix(".journal")

    def mistakes(self) -> Iterator[str]:
        yield from super().mistakes()
        yield from self._mistakes_of_limits()
        yield from replica_files.mistakes("JOURNAL_FILE", self.journal_file)
        yield from object_credentials.mistakes("MODEL_ORIGIN", self.model_origin)
        yield from self._mistakes_of_hosts()
        try:
            self.provider()
        except ValueError as error:
            yield str(error)
        if not 0 <= self.tax_percent <= 100:
            yield f"TAX_PERCENT: {self.tax_percent}; use 0 to 100"
        for name, price in (("PRICE_PER_INPUT_TOKEN", self.price_per_input_token), ("PRICE_PER_OUTPUT_TOKEN", self.price_per_output_token)):
            if not 0 <= price <= 10:
                yield f"{name}: {price} credits per token; use 0 to 10"

    def _mistakes_of_hosts(self) -> Iterator[str]:
        for origin in self.cors_origins:
            if not is_origin(origin):
                yield f"CORS_ORIGINS: {origin[:100]!r} is not an origin; write https://example.org, without a path, or *"

    def seller(self) -> Seller:
        return Seller(Party(self.seller_name, self.seller_address), self.tax_name, self.tax_percent, self.currency)

    def provider(self) -> ProviderSettings | None:
        """Return how to reach the payment provider. Raises ValueError with all mistakes, without secrets."""
        if self.payments == "manual" or self.money == "off":
            return None
        name, library = self.payments.upper(), "stripe" if self.payments == "stripe" else "paddle_billing"
        key = "STRIPE_SECRET_KEY_FILE" if self.payments == "stripe" else "PADDLE_API_KEY_FILE"
        files = {variable: getattr(self, variable.lower()) for variable in (key, f"{name}_WEBHOOK_SECRET_FILE")}
        mistakes, secrets = list[str](), list[str]()
        if importlib.util.find_spec(library) is None:
            mistakes.append(f"PAYMENTS={self.payments} needs a library: install requirements/payments.lock, see docs/howto/billing.md")
        for variable, file in files.items():
            try:
                secrets.append("" if file is None else file.read_text(encoding="ascii").strip())
            except (OSError, ValueError) as error:
                mistakes.append(f"{variable}: {file} can't be read: {type(error).__name__}")
            else:
                mistakes += [] if secrets[-1] else [f"PAYMENTS={self.payments} needs {variable}"]
        if any(secret.startswith(LIVE_KEYS) for secret in secrets) and not self.public_url.startswith("https://"):
            mistakes.append(f"{key}: a live key needs a PUBLIC_URL with https://")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        api_url: str | None = getattr(self, f"{self.payments}_api_url")
        return ProviderSettings(
            name=self.payments,
            secret=secrets[0],
            webhook_secret=secrets[1],
            api_url=api_url,
            return_url=self.billing_page or "http://localhost:3000/billing",
            currency=self.currency,
            has_tax=self.stripe_tax == "on",
        )

    @property
    def billing_page(self) -> str:
        """Return where people buy; empty without PUBLIC_URL."""
        return f"{self.public_url.rstrip('/')}/billing" if self.public_url else ""

    def default_price(self) -> tuple[int, int]:
        """Return micro-credits per million tokens, input and output."""
        return int(self.price_per_input_token * MICRO * MICRO), int(self.price_per_output_token * MICRO * MICRO)


def is_origin(text: str) -> bool:
    """Return whether a browser could send this origin."""
    return text == "*" or _ORIGIN.fullmatch(text) is not None


class GatewaySettingsRpc:
    def __init__(self, settings: GatewaySettings, read_plans: Callable[[], Mapping[PlanName, TierPlan]]) -> None:
        self._settings = settings
        self._read_plans = read_plans

    @serves(api.gateway_settings)
    async def get_settings(self, request: api.GetSettings, call: RpcCall) -> api.ShownSettings:
        return list_settings(self._settings)

    @serves(api.list_tiers)
    async def list_tiers(self, request: api.ListTiers, call: RpcCall) -> api.Tiers:
        return api.Tiers(
            tuple(
                api.TierTerms(tier, **{name: getattr(plan, name) for name in BY_NAME}, included_tokens=plan.included_tokens)
                for tier, plan in self._read_plans().items()
            )
        )
