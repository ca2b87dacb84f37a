import json
from datetime import UTC, datetime

import msgspec
import pytest

from services.web.pages.admin import health_view
from shared.api.gateway import Check, NodeRow, ServiceHealth
from shared.api.metrics import ComponentHealth, SystemHealth
from shared.types import ModelName, NodeId, Role

NOW = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)
GATEWAY_HEALTH = ServiceHealth("degraded", (Check("postgresql", False, "start it"), Check("valkey", True)), 1, (ModelName("m"),), 1234)


def row(role: Role, *, usable: bool = True) -> NodeRow:
    return NodeRow(NodeId("UA"), role, role.value, "nats", True, usable, "", (), NOW, "1", 0, 0, 0)


@pytest.mark.parametrize(
    ("whole", "gateway_health", "word", "tone"),
    [
        pytest.param(SystemHealth("healthy", ()), GATEWAY_HEALTH, "OK", "good", id="metrics has the word"),
        pytest.param(SystemHealth("down", ()), None, "Down", "bad", id="down"),
        pytest.param(None, GATEWAY_HEALTH, "Degraded", "warn", id="the gateway where metrics is away"),
        pytest.param(None, None, "Unknown", "warn", id="nobody answers"),
        pytest.param(SystemHealth("melting", ()), None, "melting", "warn", id="a word of a newer version"),
    ],
)
def test_overall_status(whole: SystemHealth | None, gateway_health: ServiceHealth | None, word: str, tone: str) -> None:
    found = health_view.describe(whole, gateway_health, None)
    assert (found.word, found.tone) == (word, tone)


def test_problems_come_first() -> None:
    parts = tuple(ComponentHealth(status, "service", status, NOW, "why") for status in ("healthy", "down", "degraded"))
    found = health_view.describe(SystemHealth("down", parts), None, None)
    assert [(part.name, part.tone) for part in found.parts] == [("down", "bad"), ("degraded", "warn"), ("healthy", "good")]
    assert (found.parts[0].since, found.parts[0].why) == ("20 Nov 2026, 14:05 UTC", "why")


def test_node_and_request_counts() -> None:
    rows = (row(Role.WORKER), row(Role.WORKER, usable=False), row(Role.GATEWAY))
    found = health_view.describe(None, GATEWAY_HEALTH, rows)
    assert (found.workers, found.nodes, found.in_flight, found.models) == ("1 of 2", "2 of 3", "1,234", "1")
    assert [(check.name, check.state, check.why) for check in found.checks] == [
        ("postgresql", "Down", "start it"),
        ("valkey", "OK", ""),
    ]
    nothing = health_view.describe(None, None, None)
    assert {nothing.workers, nothing.nodes, nothing.in_flight, nothing.models} == {"–"}


def test_event_equals_the_page_and_marks_empty_lists() -> None:
    values = json.loads(msgspec.json.encode(health_view.values(health_view.describe(None, GATEWAY_HEALTH, ()))))
    assert (values["word"], values["no_parts"], values["no_checks"]) == ("Degraded", True, False)
    assert values["checks"][0] == {
        "id": "postgresql",
        "name": "postgresql",
        "kind": "",
        "state": "Down",
        "tone": "bad",
        "since": "",
        "why": "start it",
    }
