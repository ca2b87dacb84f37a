"""Valid calls of the routes of webhooks, for schemathesis."""

from collections.abc import Callable, Mapping
from typing import Any

import httpx

#: A network of documentation (RFC 9637), which Python 3.11 takes for a public one.
NOBODYS = "https://[3fff::1]/"
#: There is no server.
NEVER_GOOD = {"POST /v1/webhook_endpoints/{endpoint}/test"}


async def good_calls(http: httpx.AsyncClient) -> Mapping[str, Callable[[], Mapping[str, Any]]]:
    endpoint = {"name": "fuzz", "url": NOBODYS, "event_types": ["webhook.test"]}
    made = [await http.post("/v1/webhook_endpoints", json=endpoint) for _ in range(4)]
    endpoints = [str(each.raise_for_status().json()["id"]) for each in made]
    return {
        "POST /v1/webhook_endpoints": lambda: endpoint,
        "GET /v1/webhook_endpoints/{endpoint}": lambda: {"endpoint": endpoints[0]},
        "POST /v1/webhook_endpoints/{endpoint}": lambda: {"endpoint": endpoints[0], "name": "other"},
        "DELETE /v1/webhook_endpoints/{endpoint}": lambda: {"endpoint": endpoints.pop() if len(endpoints) > 1 else "gone"},
        "POST /v1/webhook_endpoints/{endpoint}/rotate_secret": lambda: {"endpoint": endpoints[0]},
        "POST /v1/webhook_endpoints/{endpoint}/test": lambda: {"endpoint": endpoints[0]},
    }
