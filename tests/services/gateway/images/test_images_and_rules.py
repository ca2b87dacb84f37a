"""Policies, guardrails and routes apply to requests with images."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from services.gateway.facts import model_names, model_routes
from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.facts.policies import Policies
from services.gateway.requests.image_admission import ImageLimits
from shared import context, errors
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, ImagePart
from shared.config_documents import PolicyDocument, RouteDocument, TargetDocument
from shared.types import ModelName
from tests.services.gateway import fakes
from tests.services.gateway.fakes import OWNER, FakeWorker, RunningService
from tests.services.gateway.images.pictures import png

SEES = ("images",)


@pytest.fixture
async def service() -> AsyncIterator[RunningService]:
    async with fakes.running_service() as service:
        service.add_worker(1, service.worker, "smollm2", abilities=SEES)
        yield service


def use(service: RunningService, policy: dict[str, Any], *models: str) -> None:
    """Serve `assistant` with these models under the policy."""
    targets = tuple(TargetDocument(name=model, model=model, order=order) for order, model in enumerate(models, 1))
    routes = {"assistant": model_routes.compile_route("assistant", 1, RouteDocument(targets=targets))} if models else {}
    policies = Policies(
        {"mesh": msgspec.convert({"external": ["*"], **policy}, PolicyDocument), "default": PolicyDocument(external=("*",))}
    )
    service.config = ConfigSnapshot(names=model_names.ModelNames({}, None, routes=routes), limits=service.config.limits, policies=policies)


async def ask(service: RunningService, content: str = "hi", at: int = 0, model: str = "smollm2", **fields: Any) -> None:
    context.start()
    messages = (ChatMessage("user", content, images=(ImagePart(png(), at),)),)
    request = await ImageLimits().admit(InferenceRequest(messages=messages, model=ModelName(model), **fields))
    async with service.pulled.run(OWNER, request, seconds=10) as running:
        async for _ in running:
            pass


async def test_images_never_go_to_a_provider_that_may_not_have_the_prompt(service: RunningService) -> None:
    provider = FakeWorker()
    service.add_worker(2, provider, "cloud", provider="acme", abilities=SEES)
    await ask(service, model="cloud")
    with pytest.raises(errors.PolicyForbidden, match="policy_external"):
        await ask(service, model="cloud", forbid_external=True)
    use(service, {"external": []})
    with pytest.raises(errors.PolicyForbidden, match="policy_external"):
        await ask(service, model="cloud")
    assert len(provider.received) == 1


async def test_a_route_skips_targets_that_see_nothing(service: RunningService) -> None:
    blind = FakeWorker()
    service.add_worker(2, blind, "blind")
    use(service, {}, "blind", "smollm2")
    await ask(service, model="assistant")
    assert (len(service.worker.received), len(blind.received)) == (1, 0)
    use(service, {}, "blind")
    with pytest.raises(errors.BadRequest, match="no target of assistant supports images"):
        await ask(service, model="assistant")
    assert not blind.received


@pytest.mark.parametrize(
    ("content", "at", "expected"),
    [
        pytest.param("ask a@example.org | now", 19, "ask [EMAIL] |", id="behind a mask"),
        pytest.param("| ask a@example.org", 1, "|", id="before it"),
        pytest.param("no address |", 12, "no address |", id="no mask"),
    ],
)
async def test_a_mask_moves_the_image_behind_it(service: RunningService, content: str, at: int, expected: str) -> None:
    use(service, {"guard": {"prompt": {"email": "mask"}}})
    await ask(service, content, at)
    [prompt] = service.worker.received
    assert not isinstance(prompt.prompt, str)
    [message] = prompt.prompt
    assert message.content[: message.images[0].at].replace("[email]", "[EMAIL]") == expected, message


async def test_what_a_policy_refuses_is_refused_beside_an_image(service: RunningService) -> None:
    use(service, {"guard": {"prompt": {"email": "refuse"}}})
    with pytest.raises(errors.ContentFiltered, match="email"):
        await ask(service, "write to a@example.org")
    assert not service.worker.received


async def test_the_reservation_covers_the_image_and_the_row_has_what_the_worker_counted(service: RunningService) -> None:
    service.worker.prompt_tokens = 1234
    await ask(service)
    row = service.store.only_row
    assert row.prompt_tokens == 1234
    assert row.prompt_hash
