"""The latest numbers of the history, in the order in which an operator reads them."""

from datetime import timedelta

import pytest

from cli.top import readings
from cli.top.readings import MeshReadings, NodeLoad, Numbers, SourceAnswer
from shared import errors
from shared.api.gateway import NodeRows
from tests.cli.top.seen import AT, answer, line

COMPLETED, TOKENS, QUEUE = "ai_platform_completed_requests_total", "ai_platform_tokens_total", "ai_platform_queue_depth"
CPU, USED, TOTAL = "ai_platform_host_cpu_usage_ratio", "ai_platform_gpu_memory_used_bytes", "ai_platform_gpu_memory_total_bytes"


def test_requests_are_all_that_ended_and_errors_those_that_somebody_must_look_at() -> None:
    ended = [line(COMPLETED, rate, status=status) for status, rate in [("success", 4), ("error", 2), ("timeout", 1), ("limited", 8)]]
    found = readings.numbers([answer(*ended)])
    assert (found.requests, found.errors) == (15, 3)


def test_tokens_are_those_of_gateways_and_a_workers_own_are_its_output() -> None:
    of_mesh = answer(
        line(TOKENS, 10, service="gateway", type="input"),
        line(TOKENS, 20, service="gateway", type="output"),
        line(TOKENS, 20, service="inference", type="output"),
    )
    of_nodes = answer(
        line(TOKENS, 20, service="gateway", node="gate", type="output"),
        line(TOKENS, 7, service="inference", node="one", type="input"),
        line(TOKENS, 20, service="inference", node="one", type="output"),
    )
    found = readings.numbers([of_mesh, of_nodes])
    assert (found.input_tokens, found.output_tokens) == (10, 20)
    assert found.loads == {"one": NodeLoad(tokens_per_second=20)}


def test_what_waits_at_gateways_and_workers_is_one_queue_and_the_longest_comes_first() -> None:
    waiting = answer(
        line(QUEUE, 1, service="gateway", model="b"),
        line(QUEUE, 1, service="gateway", model="a"),
        line(QUEUE, 2, service="inference", model="a"),
        line(QUEUE, 0, service="gateway", model="idle"),
    )
    assert list(readings.numbers([waiting]).queues.items()) == [("a", 3), ("b", 1)]


def test_gpus_of_a_node_are_one_memory() -> None:
    gpus = answer(
        line(USED, 2, node="n", gpu="0"),
        line(USED, 4, node="n", gpu="1"),
        line(TOTAL, 8, node="n", gpu="0"),
        line(TOTAL, 4, node="n", gpu="1"),
    )
    assert readings.numbers([gpus]).loads == {"n": NodeLoad(gpu_memory=0.5)}
    assert readings.numbers([answer(line(USED, 2, node="n", gpu="0"))]).loads == {"n": NodeLoad()}


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        pytest.param((0.1, 0.9), 0.9, id="the last"),
        pytest.param((0.9, None), 0.9, id="of the step before, while this one has none"),
        pytest.param((0.9, -3.0), 0.0, id="a counter that began again"),
        pytest.param((0.9, float("nan")), 0.9, id="what is no number"),
        pytest.param((None, None), None, id="none"),
    ],
)
def test_the_number_that_is_shown(values: tuple[float | None, ...], shown: float | None) -> None:
    found = readings.numbers([answer(line(CPU, values[-1], *values[:-1], node="n")), answer(line(CPU, 1.0, 1.0, node="other"))])
    assert found.loads.get("n", NodeLoad()).cpu == shown


def test_a_node_that_fell_silent_has_no_load_any_more() -> None:
    old, new = answer(line(CPU, 0.9, node="gone"), since=AT - timedelta(seconds=60)), answer(line(CPU, 0.1, node="here"))
    assert readings.numbers([old, new]).loads == {"here": NodeLoad(cpu=0.1)}


def test_without_a_history_nothing_is_known() -> None:
    assert readings.numbers([answer()]) == readings.numbers([]) == Numbers()


def test_nothing_was_said_only_where_nobody_ever_answered() -> None:
    away = errors.NotReachable("no gateway answers")
    assert readings.why_nothing(MeshReadings()) is None
    assert readings.why_nothing(MeshReadings(nodes=SourceAnswer(problem=away))) is away
    known = SourceAnswer(NodeRows(()), 1.0)
    assert readings.why_nothing(MeshReadings(nodes=known.missed(away))) is None
    assert known.missed(away).answer == NodeRows(())
