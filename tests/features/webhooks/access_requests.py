"""The requests of the access matrix for webhooks."""

from collections.abc import Callable
from typing import Any

from features.webhooks import contract

NO_WEBHOOK = f"whe_{'a' * 26}"
#: It may not get webhooks.
NO_SERVER = "https://127.0.0.1/"

REQUESTS: dict[str, Callable[[], Any]] = {
    "gateway.createWebhook": lambda: contract.CreateWebhook("mine", NO_SERVER, (contract.EventType.TEST,)),
    "gateway.getWebhook": lambda: contract.GetWebhook(NO_WEBHOOK),
    "gateway.changeWebhook": lambda: contract.ChangeWebhook(NO_WEBHOOK),
    "gateway.rotateWebhookSecret": lambda: contract.RotateWebhookSecret(NO_WEBHOOK),
    "gateway.deleteWebhook": lambda: contract.DeleteWebhook(NO_WEBHOOK),
    "gateway.testWebhook": lambda: contract.TestWebhook(NO_WEBHOOK),
}
BODIES: dict[str, Callable[[], Any]] = {
    "POST /v1/webhook_endpoints": lambda: {"name": "mine", "url": NO_SERVER, "event_types": ["webhook.test"]},
    "GET /v1/webhook_endpoints": lambda: None,
    "GET /v1/webhook_endpoints/{endpoint}": lambda: None,
    "POST /v1/webhook_endpoints/{endpoint}": dict,
    "DELETE /v1/webhook_endpoints/{endpoint}": lambda: None,
    "POST /v1/webhook_endpoints/{endpoint}/rotate_secret": dict,
    "POST /v1/webhook_endpoints/{endpoint}/test": dict,
    "GET /v1/webhook_event_types": lambda: None,
}
