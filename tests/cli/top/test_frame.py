"""Building one frame from the readings."""

from datetime import timedelta

from cli.top import frame
from cli.top.frame import SilentSource, TopFrame
from cli.top.readings import MeshReadings, NodeLoad, Numbers, SourceAnswer
from shared import errors
from shared.api.alerts import Alerts
from shared.api.gateway import NodeRows
from shared.api.metrics import ComponentHealth, SystemHealth
from tests.cli.top import seen
from tests.cli.top.seen import AT, GONE, WORKER

NOW = 100.0
ALL = MeshReadings(
    health=SourceAnswer(seen.HEALTH, NOW),
    alerts=SourceAnswer(Alerts((seen.alert(), seen.alert("later", state="pending"), seen.alert("past", state="over")), ()), NOW),
    nodes=SourceAnswer(NodeRows(seen.NODES), NOW),
    numbers=SourceAnswer(Numbers(requests=12, errors=0.5, loads={WORKER[:12]: NodeLoad(cpu=0.5), GONE[:12]: NodeLoad(cpu=0.9)}), NOW),
)


def made(readings: MeshReadings) -> TopFrame:
    return frame.make(readings, NOW + 14, AT)


def test_frame_shows_current_problems_and_alerts() -> None:
    found = made(ALL)
    assert (found.health, found.alerts_firing, found.silent) == ("degraded", 1, ())
    assert [(one.name, one.status, one.seconds) for one in found.wrong] == [("UGONEBBBB", "down", 12)]
    assert [(one.name, one.seconds) for one in found.alerts] == [("worker_gone", 300)]


def test_node_has_its_own_load_and_a_gone_one_has_none() -> None:
    found = made(ALL)
    by_id = {node.id: node for node in found.nodes}
    assert (by_id[WORKER].state, by_id[WORKER].cpu, by_id[WORKER].slots) == ("used", 0.5, 4)
    assert (by_id[GONE].state, by_id[GONE].cpu) == ("gone", None)
    assert found.streams_running == 2


def test_at_most_five_alerts_are_listed_with_their_total() -> None:
    many = Alerts(tuple(seen.alert(f"number_{number}") for number in range(8)), ())
    found = made(MeshReadings(alerts=SourceAnswer(many, NOW)))
    assert [one.name for one in found.alerts] == [f"number_{number}" for number in range(5)]
    assert found.alerts_firing == 8


def test_down_components_precede_degraded_ones() -> None:
    parts = [ComponentHealth(name=status, kind="service", status=status, since=AT) for status in ("degraded", "healthy", "down")]
    health = SystemHealth(status="down", components=tuple(parts) * 4)
    found = made(MeshReadings(health=SourceAnswer(health, NOW)))
    assert [one.status for one in found.wrong] == ["down"] * 4 + ["degraded"]
    assert found.parts_wrong == 8


def test_silent_source_keeps_its_last_values_with_their_age() -> None:
    away = errors.NotReachable("no gateway answers")
    found = made(MeshReadings(nodes=ALL.nodes.missed(away), health=SourceAnswer(problem=away)))
    assert len(found.nodes) == 3
    assert found.silent == (SilentSource("health", "no gateway answers", None), SilentSource("nodes", "no gateway answers", 14))


def test_nothing_is_known_before_the_first_answer() -> None:
    found = made(MeshReadings())
    assert (found.health, found.requests_per_second, found.streams_running, found.alerts_firing, found.nodes) == (None,) * 4 + ((),)
    assert (found.wrong, found.parts_wrong) == ((), None)


def test_clock_skew_gives_no_negative_age() -> None:
    found = made(MeshReadings(alerts=SourceAnswer(Alerts((seen.alert(since=AT + timedelta(hours=1)),), ()), NOW)))
    assert found.alerts[0].seconds == 0
