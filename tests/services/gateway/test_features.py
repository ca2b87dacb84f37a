"""What features of the test's own add to a gateway."""

from typing import Any, cast

import pytest

from services.gateway.facts.bad_field import BadField
from services.gateway.features import Built, Features, GatewayPart, Site, reads_outbox
from services.gateway.openai_api.background_responses import NoBackground
from shared import errors, features
from shared.api.gateway import Check


class Store:
    """What the first feature offers the second one."""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Features:
    store = Store()

    async def checks() -> tuple[Check, ...]:
        return (Check("store", ok=False, detail="away", needed=False),)

    def build_second(site: Site) -> Built:
        assert site.offered(Store) is store
        return Built(background=NoBackground())

    parts = {"first": GatewayPart(lambda _site: Built(offers=[store], checks=checks)), "second": GatewayPart(build_second)}
    monkeypatch.setattr(features, "parts", lambda _place, _kind: parts)
    found, nothing = Features(), cast("Any", None)
    found.build(
        Site(
            settings=nothing, node=nothing, database=nothing, items=nothing, audit_reporting=nothing, now=nothing, runs=nothing,
            meters=None, catalogue=nothing, right_calls={}, requests=nothing, owners=nothing, take_turn=nothing,
            serve_lines=nothing, on_tenant_event=nothing,
        )
    )  # fmt: skip
    return found


async def test_a_feature_gets_what_one_that_it_needs_offers_and_their_checks_are_shown(built: Features) -> None:
    assert [check.name for check in await built.checks()] == ["store"]


async def test_a_gateway_without_jobs_refuses_responses_in_the_background() -> None:
    call: Any = type("Call", (), {"rest_of_path": "resp_1"})
    background = Features().background
    with pytest.raises(BadField, match="this mesh runs no jobs"):
        await background.begin(call, cast("Any", None))
    with pytest.raises(errors.NotFound, match="no stored response 'resp_1'"):
        await background.delete(call)


def test_the_outbox_is_written_if_a_feature_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, settings = {"without": GatewayPart(lambda _site: Built())}, cast("Any", object())
    monkeypatch.setattr(features, "parts", lambda _place, _kind: parts)
    assert not reads_outbox(settings)
    parts["with"] = GatewayPart(lambda _site: Built(), lambda asked: asked is settings)
    assert reads_outbox(settings)
