"""/v1/webhook_endpoints, as OpenAI's own client calls it over a real socket."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from features.webhooks.contract import EventType
from features.webhooks.gateway.rest_webhooks import RestWebhooks
from services.gateway.http_api.http_app import HttpAccess, HttpApp
from shared.api.auth import Principal
from shared.telemetry import Metrics
from shared.types import Credential
from tests.features.webhooks.gateway.receiver import Receiver, receiving
from tests.features.webhooks.gateway.test_deliveries import ADA, Gateway, running
from tests.services.gateway import openai_clients
from tests.services.gateway.fakes import KEY, node_id


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving(b"HTTP/1.1 202 Taken\r\n\r\n") as found:
        yield found


@pytest.fixture
async def gateway(plain_url: str, postgres_url: str, receiver: Receiver) -> AsyncIterator[Gateway]:
    async with running(plain_url, receiver, postgres_url) as found:
        sending = asyncio.create_task(found.deliveries.run())
        yield found
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async def identify(_credential: Credential | None) -> Principal:
        return ADA

    quotas: Any = None  # no route runs a model
    app = HttpApp(RestWebhooks(gateway.rpc, node_id(99)).routes(), HttpAccess(identify=identify, quotas=quotas), Metrics("gateway"))
    served: Any = SimpleNamespace(app=lambda: app)
    async with (
        openai_clients.listening(served) as port,
        openai.AsyncOpenAI(api_key=KEY, base_url=f"http://127.0.0.1:{port}/v1", max_retries=0) as found,
    ):
        yield found


async def test_openais_client_manages_endpoints_and_unwraps_their_events(client: openai.AsyncOpenAI, receiver: Receiver) -> None:
    made = await client.webhooks.create(name="mine", url=receiver.url, event_types=["batch.completed", "batch.failed"])
    assert made.object == "webhook_endpoint"
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret_hint is not None
    assert made.signing_secret_hint.endswith(made.signing_secret[-5:-1])
    found = await client.webhooks.retrieve(made.id)
    assert "signing_secret" not in found.model_dump()
    assert (found.name, found.url, found.event_types) == ("mine", receiver.url, ["batch.completed", "batch.failed"])
    tested = await client.webhooks.test(made.id, event_type="batch.completed")
    assert (tested.webhook_endpoint_id, tested.event_type, tested.status_code, tested.success) == (made.id, "batch.completed", 202, True)
    event = client.webhooks.unwrap(receiver.delivered[0].body, receiver.delivered[0].headers, secret=made.signing_secret)
    assert event.type == "batch.completed"
    changed = await client.webhooks.update(made.id, name="other", event_types=["response.completed"])
    assert (changed.name, changed.url, changed.event_types) == ("other", receiver.url, ["response.completed"])
    rotated = await client.webhooks.rotate_secret(made.id)
    await client.webhooks.test(made.id, event_type="batch.completed")
    last = receiver.delivered[1]
    client.webhooks.unwrap(last.body, last.headers, secret=rotated.signing_secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(last.body, last.headers, secret=made.signing_secret)
    both = await client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    await client.webhooks.test(made.id, event_type="batch.completed")
    for secret in (rotated.signing_secret, both.signing_secret):
        client.webhooks.unwrap(receiver.delivered[2].body, receiver.delivered[2].headers, secret=secret)
    deleted = await client.webhooks.delete(made.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "webhook_endpoint.deleted")
    with pytest.raises(openai.NotFoundError):
        await client.webhooks.retrieve(made.id)


@pytest.mark.parametrize("status", ["302 Found", "404 Not Found", "500 Internal Server Error"])
async def test_a_test_is_a_success_only_for_2xx(client: openai.AsyncOpenAI, receiver: Receiver, status: str) -> None:
    made = await client.webhooks.create(name="mine", url=receiver.url, event_types=["batch.completed"])
    receiver.answers = [f"HTTP/1.1 {status}\r\n\r\n".encode()]
    with pytest.raises(openai.BadRequestError, match=f"the test failed: returned {status[:3]}"):
        await client.webhooks.test(made.id, event_type="batch.completed")


async def test_pages_are_newest_first(client: openai.AsyncOpenAI, receiver: Receiver) -> None:
    made = [(await client.webhooks.create(name=f"{number}", url=receiver.url, event_types=["batch.failed"])).id for number in range(5)]
    page = await client.webhooks.list(limit=2)
    assert ([each.id for each in page.data], page.has_more) == (made[:2:-1], True)
    assert [each.id async for each in client.webhooks.list(limit=2)] == made[::-1]


async def test_event_types_are_listed(client: openai.AsyncOpenAI) -> None:
    assert (await client.webhooks.event_types.list()).data == list(EventType)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "x", "url": "https://10.0.0.1/", "event_types": ["batch.failed"]}, "url"),
        ({"name": "x", "url": "https://example.org/", "event_types": ["eval.run.failed"]}, "event_types[0]"),
        ({"name": "x", "url": "https://example.org/", "event_types": []}, "event_types"),
        ({"name": "", "url": "https://example.org/", "event_types": ["batch.failed"]}, "name"),
        ({"name": "x", "event_types": ["batch.failed"]}, "url"),
    ],
)
async def test_what_is_wrong_is_named(client: openai.AsyncOpenAI, body: dict[str, Any], field: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post("/webhook_endpoints", body=body, cast_to=object)
    assert refused.value.param == field
    assert (await client.webhooks.list()).data == []


async def test_a_test_without_an_answer_is_an_error(client: openai.AsyncOpenAI, receiver: Receiver) -> None:
    made = await client.webhooks.create(name="mine", url=receiver.url, event_types=["batch.completed"])
    receiver.answers = [b""]
    with pytest.raises(openai.BadRequestError, match="its answer is no HTTP"):
        await client.webhooks.test(made.id, event_type="batch.completed")
