"""What the gateway reads from its environment."""

from typing import Annotated

import msgspec

from shared import errors, node
from shared.config import Variable


class GatewaySettings(node.NodeSettings, frozen=True, kw_only=True):
    port: Annotated[int, Variable("GATEWAY_SERVICE_PORT", "the port of the public HTTP API")] = 3002
    database_url: Annotated[str | None, Variable("DATABASE_URL", "PostgreSQL, for all services", secret=True)] = None
    gateway_database_url: Annotated[
        str | None, Variable("GATEWAY_DATABASE_URL", "PostgreSQL for the gateway alone; DATABASE_URL where it is not set", secret=True)
    ] = None
    redis_url: Annotated[str, Variable("REDIS_URL", "Redis or Valkey, for the limits", secret=True)]
    prompt_hash_secret: Annotated[
        str, Variable("PROMPT_HASH_SECRET", "key of the HMAC that stands for a prompt in request_logs, at least 16 characters", secret=True)
    ]
    default_rate_limit: Annotated[int, Variable("DEFAULT_RATE_LIMIT", "requests per hour of a user of the free tier")] = 100
    premium_rate_limit: Annotated[int, Variable("PREMIUM_RATE_LIMIT", "requests per hour of a user of the premium tier")] = 1000
    model_aliases: Annotated[dict[str, str], Variable("MODEL_ALIASES", "other names of models, alias=model, with commas between them")] = (
        msgspec.field(default_factory=lambda: {"llama3": "smollm2"})
    )
    default_model: Annotated[
        str | None, Variable("DEFAULT_MODEL", "the model of requests that name none; the first served one where it is not set")
    ] = None
    request_timeout_seconds: Annotated[float, Variable("REQUEST_TIMEOUT_SECONDS", "the longest that one request may take")] = 300

    def __post_init__(self) -> None:
        mistakes = []
        if not (self.database_url or self.gateway_database_url):
            mistakes.append("DATABASE_URL is not set (or GATEWAY_DATABASE_URL for this service alone)")
        if len(self.prompt_hash_secret) < 16:
            mistakes.append("PROMPT_HASH_SECRET has fewer than 16 characters")
        if self.default_rate_limit < 1 or self.premium_rate_limit < 1:
            mistakes.append("DEFAULT_RATE_LIMIT and PREMIUM_RATE_LIMIT must be at least 1")
        if not 0 < self.request_timeout_seconds <= 3600:
            mistakes.append("REQUEST_TIMEOUT_SECONDS must be more than 0 and at most 3600")
        if mistakes:
            raise errors.BadSettings("the settings cannot work:\n  " + "\n  ".join(mistakes), hint="see docs/reference/settings.md")

    @property
    def store_url(self) -> str:
        url = self.gateway_database_url or self.database_url
        assert url is not None  # __post_init__ has seen to it
        return url
