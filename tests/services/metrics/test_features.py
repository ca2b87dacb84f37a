"""What features add to the metrics service, with a feature of the test's own."""

import json
from collections.abc import MutableMapping
from typing import Any, cast

import pytest

from services.metrics.features import Built, Features, MetricsPart, Site
from shared import features
from shared.api.gateway import Check
from tests.services.metrics.replicas import FakeChannel

SITE = cast("Site", None)


def made(monkeypatch: pytest.MonkeyPatch, **built: Built) -> Features:
    parts = {name: MetricsPart(lambda _site, one=one: one) for name, one in built.items()}  # type: ignore[misc]
    monkeypatch.setattr(features, "parts", lambda _place, _kind: parts)
    return Features(SITE)


async def get(found: Features, path: str) -> tuple[int, bytes]:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    app = found.asgi()
    assert app is not None
    await app({"type": "http", "method": "GET", "path": path, "headers": []}, cast("Any", None), send)
    return sent[0]["status"], sent[-1].get("body", b"")


async def test_each_path_is_answered_by_its_feature_and_every_other_by_404(monkeypatch: pytest.MonkeyPatch) -> None:
    async def score(_scope: object, _receive: object, send: Any) -> None:
        await send({"status": 200})

    found = made(monkeypatch, scores=Built(apps={"/scores/{name}": score}), none=Built())
    assert await get(found, "/scores/l4") == (200, b"")
    status, body = await get(found, "/else")
    assert status == 404
    assert json.loads(body)["message"] == "this port has /scores/{name}, /healthz, /readyz, /dependencies and /metrics"
    assert made(monkeypatch, none=Built()).asgi() is None


async def test_what_features_add_comes_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class Duty:
        async def round(self, *_session: object, leads: bool) -> None: ...

    one, two = Duty(), Duty()
    checks = [Check("file", ok=False)]
    chat = FakeChannel("chat")
    found = made(
        monkeypatch, a=Built(leader_duties=[one], served=[one]), b=Built(leader_duties=[two], checks=lambda: checks, channels=[chat])
    )
    assert (found.leader_duties, [*found.served], [*found.checks()], found.channels) == ([one, two], [one], checks, [chat])
    assert found.alerts is None
