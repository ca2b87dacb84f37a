"""The latest values of the history, ordered for an operator."""

from datetime import timedelta

import pytest

from cli.top import readings
from cli.top.readings import MeshReadings, NodeLoad, Numbers, SourceAnswer
from shared import errors
from shared.api.gateway import NodeRows
from tests.cli.top.seen import AT, answer, line

COMPLETED, TOKENS, QUEUE = "ai_platform_completed_requests_total", "ai_platform_tokens_total", "ai_platform_queue_depth"
CPU, USED, TOTAL = "ai_platform_host_cpu_usage_ratio", "ai_platform_gpu_memory_used_bytes", "ai_platform_gpu_memory_total_bytes"


def test_requests_are_all_completed_ones_and_errors_those_to_look_into() -> None:
    ended = [line(COMPLETED, rate, status=status) for status, rate in [("success", 4), ("error", 2), ("timeout", 1), ("limited", 8)]]
    found = readings.numbers([answer(*ended)])
    assert (found.requests, found.errors) == (15, 3)


def test_tokens_come_from_gateways_and_output_tokens_from_workers() -> None:
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


def test_drafts_of_all_workers_are_added() -> None:
    name = "ai_platform_drafted_tokens_total"
    drafts = answer(line(name, 12, service="inference", result="accepted"), line(name, 4, service="inference", result="rejected"))
    found = readings.numbers([drafts])
    assert (found.drafted_tokens, found.accepted_tokens) == (16, 12)
    assert any(name in names for names, _ in readings.QUESTIONS)


def test_queues_of_gateways_and_workers_are_added_longest_first() -> None:
    waiting = answer(
        line(QUEUE, 1, service="gateway", model="b"),
        line(QUEUE, 1, service="gateway", model="a"),
        line(QUEUE, 2, service="inference", model="a"),
        line(QUEUE, 0, service="gateway", model="idle"),
    )
    assert list(readings.numbers([waiting]).queues.items()) == [("a", 3), ("b", 1)]


def test_gpus_of_a_node_share_one_memory_figure() -> None:
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
def test_shown_number(values: tuple[float | None, ...], shown: float | None) -> None:
    found = readings.numbers([answer(line(CPU, values[-1], *values[:-1], node="n")), answer(line(CPU, 1.0, 1.0, node="other"))])
    assert found.loads.get("n", NodeLoad()).cpu == shown


def test_silent_node_has_no_load() -> None:
    old, new = answer(line(CPU, 0.9, node="gone"), since=AT - timedelta(seconds=60)), answer(line(CPU, 0.1, node="here"))
    assert readings.numbers([old, new]).loads == {"here": NodeLoad(cpu=0.1)}


def test_nothing_is_known_without_history() -> None:
    assert readings.numbers([answer()]) == readings.numbers([]) == Numbers()


def test_there_is_a_reason_only_if_no_source_ever_answered() -> None:
    away = errors.NotReachable("no gateway answers")
    assert readings.why_nothing(MeshReadings()) is None
    assert readings.why_nothing(MeshReadings(nodes=SourceAnswer(problem=away))) is away
    known = SourceAnswer(NodeRows(()), 1.0)
    assert readings.why_nothing(MeshReadings(nodes=known.missed(away))) is None
    assert known.missed(away).answer == NodeRows(())
