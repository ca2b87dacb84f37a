"""What the gateway reads from its environment."""

from typing import Annotated

import msgspec
from msgspec import Meta

from shared import node
from shared.config import Port, Variable


class GatewaySettings(node.NodeSettings, frozen=True, kw_only=True):
    port: Annotated[Port, Variable("GATEWAY_SERVICE_PORT", "the port of the public HTTP API")] = 3002
    database_url: Annotated[str, Variable("DATABASE_URL", "PostgreSQL", secret=True, override="GATEWAY_DATABASE_URL")]
    redis_url: Annotated[str, Variable("REDIS_URL", "Redis or Valkey, for the limits", secret=True)]
    prompt_hash_secret: Annotated[
        str,
        Meta(min_length=16),
        Variable("PROMPT_HASH_SECRET", "key of the HMAC that stands for a prompt in request_logs, at least 16 characters", secret=True),
    ]
    default_rate_limit: Annotated[int, Meta(ge=1), Variable("DEFAULT_RATE_LIMIT", "requests per hour of a user of the free tier")] = 100
    premium_rate_limit: Annotated[int, Meta(ge=1), Variable("PREMIUM_RATE_LIMIT", "requests per hour of a user of the premium tier")] = 1000
    model_aliases: Annotated[dict[str, str], Variable("MODEL_ALIASES", "other names of models, alias=model, with commas between them")] = (
        msgspec.field(default_factory=lambda: {"llama3": "smollm2"})
    )
    default_model: Annotated[
        str | None, Variable("DEFAULT_MODEL", "the model of requests that name none; the first served one where it is not set")
    ] = None
    request_timeout_seconds: Annotated[
        float, Meta(gt=0, le=3600), Variable("REQUEST_TIMEOUT_SECONDS", "the longest that one request may take")
    ] = 300
