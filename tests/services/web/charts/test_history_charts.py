from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from services.web.charts import history_charts, history_queries
from services.web.charts.history_charts import HistoryChart, HistoryCharts
from services.web.charts.history_queries import HistoryQuery, HistorySpan
from services.web.charts.history_view import ChartUnit
from shared import errors
from shared.api.metrics import History, HistoryLine

SINCE = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
STEPS = 120
A, B = "UAAAAAAAAAAA", "UBBBBBBBBBBB"
REFUSED = errors.BadRequest("that would be 412 lines", hint="fewer")
AWAY = errors.NotReachable("nobody there")

Values = Sequence[float | None]


def steady(value: float | None, *, without: range = range(0)) -> Values:
    return [None if step in without else value for step in range(STEPS)]


def line(name: str, values: Values | float, **labels: str) -> HistoryLine:
    return HistoryLine(name, labels, tuple(steady(values) if isinstance(values, int | float) else values))


def answer(*lines: HistoryLine) -> History:
    return History(SINCE, 30, 15, lines)


def looked(*, without: range = range(0)) -> tuple[History, History]:
    """Return answers which say that metrics were collected from the mesh and the gateway."""
    whole = line(history_queries.MESH_SEEN, steady(2.0, without=without))
    gateway = line(history_queries.GATEWAY_SEEN, steady(3600.0, without=without), service="gateway")
    return answer(whole), answer(gateway)


def found(**answers: History | errors.AimeshError) -> dict[HistoryQuery, History | errors.AimeshError]:
    whole, services = looked()
    empty: dict[HistoryQuery, History | errors.AimeshError] = {
        HistoryQuery.WHOLE: whole,
        HistoryQuery.SERVICES: services,
        HistoryQuery.MODELS: answer(),
        HistoryQuery.ROUND_TRIPS: answer(),
        HistoryQuery.MACHINES: answer(),
    }
    return empty | {HistoryQuery[name.upper()]: each for name, each in answers.items()}


def drawn(
    answers: Mapping[HistoryQuery, History | errors.AimeshError], node: str = "", names: Mapping[str, str] | None = None
) -> HistoryCharts:
    return history_charts.draw(answers, HistorySpan.HOUR, names or {}, node)


def chart(charts: HistoryCharts, name: str) -> HistoryChart:
    return next(each for each in charts.charts if each.id == name)


def cpu(values: Values | float, node: str = A, service: str = "inference") -> HistoryLine:
    return line(history_queries.OF_MACHINE[HistoryQuery.CPU], values, service=service, node=node)


def test_idle_seconds_are_zero_and_gaps_are_unknown() -> None:
    whole = (
        line(history_queries.MESH_SEEN, steady(2.0, without=range(6, 20))),
        line(history_queries.COMPLETED, [None] * 100 + [2.0] * 20, status="success"),
        line(history_queries.COMPLETED, [None] * 110 + [1.0] * 10, status="error"),
        line(history_queries.COMPLETED, [None] * 110 + [0.5] * 10, status="timeout"),
    )
    charts = drawn(found(whole=answer(*whole)))
    answered, failed = chart(charts, "requests").lines
    assert (answered.label, answered.latest, failed.label, failed.latest) == ("Completed", "2", "Failed", "1.5")
    points = answered.points.split(",")
    assert (points[5], points[6:20], points[20], points[-1]) == ("0", [""] * 14, "0", "2")
    assert charts.gaps == "No data from 12:03 to 12:10."


def test_other_outcomes_have_their_own_lines_where_they_occur() -> None:
    whole = line(history_queries.MESH_SEEN, 2.0), line(history_queries.COMPLETED, 1.0, status="limited")
    assert [each.label for each in chart(drawn(found(whole=answer(*whole))), "requests").lines] == [
        "Completed", "Failed", "Rate limited",
    ]  # fmt: skip


def test_tokens_and_first_tokens_are_measured_by_the_gateway() -> None:
    services = (
        line(history_queries.GATEWAY_SEEN, steady(1.0, without=range(60)), service="gateway"),
        line(history_queries.TOKENS, steady(7.0, without=range(60)), service="gateway", type="output"),
        line(history_queries.TOKENS, 99.0, service="inference", type="output"),
        line(history_queries.HALF_FIRST, 0.2, service="gateway"),
        line(history_queries.MAX_FIRST, 1.5, service="gateway"),
        line(history_queries.MAX_FIRST, 99.0, service="inference"),
    )
    charts = drawn(found(services=answer(*services)))
    first = chart(charts, "first")
    assert ([(each.label, each.latest) for each in first.lines], first.unit) == (
        [("Median", "200 ms"), ("p95", "1.5 s")], ChartUnit.SECONDS,
    )  # fmt: skip
    tokens = chart(charts, "tokens").lines
    assert [(each.label, each.latest) for each in tokens] == [("Input", "0"), ("Output", "7")]
    # Unknown while the gateway was down.
    assert tokens[0].points.startswith("," * 60 + "0")


def test_tokens_are_unknown_while_the_gateway_was_down() -> None:
    assert chart(drawn(found(services=answer())), "tokens").lines == ()


def test_queued_and_running_requests_are_shown_by_model() -> None:
    models = (
        line(history_queries.QUEUE, 1.0, model="small"),
        line(history_queries.QUEUE, 5.0, model="large"),
        line(history_queries.SLOTS, 3.0, model="large", state="busy"),
        line(history_queries.SLOTS, 1.0, model="large", state="free"),
    )
    charts = drawn(found(models=answer(*models)))
    assert [each.label for each in chart(charts, "waiting").lines] == ["large", "small"]
    assert [(each.label, each.highest) for each in chart(charts, "running").lines] == [("large", "3")]


def test_round_trips_are_shown_by_path_shortest_first() -> None:
    measured = {"nats": 0.0412, "relayed": 0.12, "direct": 0.0004}
    trips = [line(history_queries.ROUND_TRIPS, seconds, path=path) for path, seconds in measured.items()]
    for node in ("", A):
        drawn_chart = chart(drawn(found(round_trips=answer(*trips)), node=node), "round_trips")
        assert [(each.label, each.latest) for each in drawn_chart.lines] == [
            ("Direct", "0.4 ms"), ("Relay", "120 ms"), ("NATS", "41 ms"),
        ]  # fmt: skip
        assert drawn_chart.note == ""
    assert chart(drawn(found()), "round_trips").note == "No data in this period."


def test_memory_is_shown_as_a_share() -> None:
    used, whole = (history_queries.OF_MACHINE[each] for each in (HistoryQuery.MEMORY, HistoryQuery.MEMORY_SIZE))
    lines = (
        line(used, 4e9, service="inference", node=A), line(whole, 16e9, service="inference", node=A),
        # The total is unknown.
        line(used, 4e9, service="inference", node=B),
    )  # fmt: skip
    memory = chart(drawn(found(machines=answer(*lines))), "memory")
    assert [(each.label, each.latest, each.points.split(",")[0]) for each in memory.lines] == [("inference UAAAAAAAA", "25 %", ".25")]


def test_gpu_charts_exist_only_with_gpus() -> None:
    of_gpus = {"gpu", "gpu_memory", "heat"}
    assert not of_gpus & {each.id for each in drawn(found()).charts}
    heat = line(history_queries.OF_MACHINE[HistoryQuery.GPU_HEAT], 71.0, service="inference", node=A, gpu="1")
    charts = drawn(found(machines=answer(heat)))
    assert of_gpus & {each.id for each in charts.charts} == {"heat"}
    assert [(each.label, each.latest) for each in chart(charts, "heat").lines] == [("inference GPU 1", "71 °C")]


def test_chart_is_limited_to_twelve_lines_and_counts_the_rest() -> None:
    nodes = [f"U{letter * 11}" for letter in "ABCDEFGHIJKLMNOP"]
    cpus = [cpu(place / 100, node) for place, node in enumerate(nodes)]
    disk = history_queries.OF_MACHINE[HistoryQuery.DISK]
    disks = [line(disk, place * 1e9, service="inference", node=node) for place, node in enumerate(nodes)]
    charts = drawn(found(machines=answer(*cpus, *disks)))
    busiest, fullest = chart(charts, "cpu"), chart(charts, "disk")
    # Sorted by name, so that each line keeps its color.
    assert [each.label for each in busiest.lines] == [f"inference U{letter * 8}" for letter in "EFGHIJKLMNOP"]
    assert busiest.note == "Showing the 12 busiest; 4 more not shown."
    assert [each.label for each in fullest.lines] == [f"inference U{letter * 8}" for letter in "ABCDEFGHIJKL"]
    assert fullest.note == "Showing the 12 fullest; 4 more not shown."


def test_machine_with_gaps_is_named_and_its_name_cannot_reverse_the_sentence() -> None:
    lines = (cpu(steady(0.5, without=range(6, 20)), A), cpu(steady(0.4, without=range(100, 120)), B))
    charts = drawn(found(machines=answer(*lines)), names={A: "\u202eevil"})
    assert chart(charts, "cpu").note == "\u2068inference\u2069: no data since 12:50. \u2068evil\u2069: no data from 12:03 to 12:10."
    assert charts.gaps == ""


def test_common_gap_is_described_once() -> None:
    whole, services = looked(without=range(6, 20))
    lines = (cpu(steady(0.5, without=range(6, 20))),)
    charts = drawn(found(whole=whole, services=services, machines=answer(*lines)))
    assert (charts.gaps, chart(charts, "cpu").note) == ("No data from 12:03 to 12:10.", "")


def test_machines_with_gaps_are_counted() -> None:
    lines = [cpu(steady(0.5, without=range(6, 20)), f"U{letter * 11}") for letter in "ABCDE"]
    note = chart(drawn(found(machines=answer(*lines))), "cpu").note
    assert note.count("no data") == 3
    assert note.endswith(" 2 more with gaps.")


def test_new_history_says_when_it_starts() -> None:
    whole, _ = looked(without=range(40))
    assert drawn(found(whole=whole)).gaps == "The history starts at 12:20."


def test_page_without_history_is_empty() -> None:
    assert drawn(found(whole=answer())).is_empty
    assert drawn(found(whole=answer(line(history_queries.MESH_SEEN, steady(None))))).is_empty


def test_machines_are_labeled_by_name() -> None:
    lines = cpu(0.5, A), cpu(0.4, B, "gateway")
    labels = [each.label for each in chart(drawn(found(machines=answer(*lines)), names={A: "rig"}), "cpu").lines]
    assert labels == ["gateway", "rig"]


def on_machine(
    machine: str, value: Values | float, node: str, service: str = "inference", question: HistoryQuery = HistoryQuery.CPU
) -> HistoryLine:
    return line(history_queries.OF_MACHINE[question], value, service=service, node=node, machine=machine)


def test_all_nodes_of_a_machine_share_a_line_with_its_name() -> None:
    lines = (
        on_machine("box-0a1b2c", 0.4, A, "gateway"),
        on_machine("box-0a1b2c", 0.6, B, "auth"),
        on_machine("rig-ffffff", 0.9, "UCCCCCCCCCCC"),
    )
    found = chart(drawn(found_machines(*lines)), "cpu")
    assert [(each.label, each.latest) for each in found.lines] == [("box", "50 %"), ("rig", "90 %")]


def test_machines_of_the_same_name_are_distinguished_by_id() -> None:
    lines = on_machine("box-0a1b2c", 0.4, A), on_machine("box-ffffff", 0.6, B)
    assert [each.label for each in chart(drawn(found_machines(*lines)), "cpu").lines] == ["box 0a1b2c", "box ffffff"]


def test_machine_without_a_name_is_labeled_by_its_nodes() -> None:
    lines = on_machine("machine-0a1b2c", 0.4, A), on_machine("machine-0a1b2c", 0.4, B)
    assert [each.label for each in chart(drawn(found_machines(*lines), names={A: "rig"}), "cpu").lines] == ["rig, inference"]


def test_worker_cannot_change_the_figures_of_a_machine_that_runs_our_services() -> None:
    lines = on_machine("box-0a1b2c", 0.4, A, "gateway"), on_machine("box-0a1b2c", 1.0, B)
    assert [(each.label, each.latest) for each in chart(drawn(found_machines(*lines)), "cpu").lines] == [("box", "40 %")]


def test_free_disk_space_is_that_of_the_fullest_disk() -> None:
    lines = [on_machine("box-0a1b2c", free, node, "gateway", HistoryQuery.DISK) for free, node in ((9e9, A), (2e9, B))]
    assert [each.latest for each in chart(drawn(found_machines(*lines)), "disk").lines] == ["2 GB"]


def found_machines(*lines: HistoryLine) -> dict[HistoryQuery, History | errors.AimeshError]:
    return found(machines=answer(*lines))


def test_heading_has_the_current_value() -> None:
    machines = [on_machine(f"box{place}-0a1b2c", place / 10, f"U{place * 11:011}") for place in (3, 8)]
    disks = [on_machine(f"box{place}-0a1b2c", place * 1e9, f"U{place * 11:011}", question=HistoryQuery.DISK) for place in (3, 8)]
    whole = (
        line(history_queries.MESH_SEEN, 2.0),
        line(history_queries.COMPLETED, 2.0, status="success"),
        line(history_queries.COMPLETED, 0.5, status="error"),
    )
    services = (
        line(history_queries.GATEWAY_SEEN, 1.0, service="gateway"),
        line(history_queries.HALF_FIRST, 0.2, service="gateway"),
        line(history_queries.MAX_FIRST, 1.5, service="gateway"),
    )
    charts = drawn(found(whole=answer(*whole), services=answer(*services), machines=answer(*machines, *disks)))
    now = {each.id: each.now for each in charts.charts}
    assert (now["requests"], now["first"], now["cpu"], now["disk"]) == ("2.5", "p95 1.5 s", "max 80 %", "min 3 GB")
    # A chart without a current value shows none in its heading.
    assert (now["tokens"], now["waiting"]) == ("0", "")


def test_old_value_is_not_current() -> None:
    assert chart(drawn(found_machines(cpu([0.5] * 60 + [None] * 60))), "cpu").now == ""


def test_page_of_one_machine_has_only_its_lines() -> None:
    charts = drawn(found(machines=answer(cpu(0.5, A), cpu(0.4, B))), node=B)
    assert {"requests", "first", "tokens", "waiting", "running"} & {each.id for each in charts.charts} == set()
    assert [each.label for each in chart(charts, "cpu").lines] == ["inference"]


def test_too_many_machines_are_split_or_combined() -> None:
    answers = found(machines=REFUSED) | dict.fromkeys(history_queries.OF_MACHINE, answer()) | {HistoryQuery.CPU: answer(cpu(0.5))}
    assert [each.label for each in chart(drawn(answers), "cpu").lines] == ["inference"]
    together = answer(line(history_queries.OF_MACHINE[HistoryQuery.CPU], 0.3, service="inference"))
    answers = found(machines=REFUSED) | dict.fromkeys(history_queries.OF_MACHINE, REFUSED) | {HistoryQuery.TOGETHER: together}
    assert [(each.label, each.latest) for each in chart(drawn(answers), "cpu").lines] == [("inference", "30 %")]
    # On the page of one node, totals are no substitute.
    alone = chart(drawn(answers, node=A), "cpu")
    assert (alone.lines, alone.note) == ((), "Unavailable: that would be 412 lines.")


def test_unreadable_chart_says_why_and_the_others_stay() -> None:
    charts = drawn(found(models=AWAY, machines=answer(cpu(0.5))))
    assert (chart(charts, "waiting").lines, chart(charts, "waiting").note) == ((), "Unavailable: nobody there.")
    assert len(chart(charts, "cpu").lines) == 1


def test_nothing_is_drawn_without_the_whole_mesh() -> None:
    with pytest.raises(errors.NotReachable):
        drawn(found(whole=AWAY))


def test_table_has_ten_minute_means() -> None:
    values = [float(step // 20) for step in range(STEPS)]
    charts = drawn(found(machines=answer(cpu([each / 10 for each in values]))))
    assert charts.periods == ("12:00", "12:10", "12:20", "12:30", "12:40", "12:50")
    only = chart(charts, "cpu").lines[0]
    assert only.periods == ("0 %", "10 %", "20 %", "30 %", "40 %", "50 %")
    assert (only.lowest, only.highest) == ("0 %", "50 %")


def test_open_page_gets_the_values_it_names() -> None:
    charts = drawn(found(machines=answer(cpu(0.5))))
    values = history_charts.values(charts)
    assert (values["since"], values["p0"], values["gaps"]) == (str(int(SINCE.timestamp())), "12:00", "")
    assert values["cpu"] == [
        {"id": A, "label": "inference", "points": ",".join([".5"] * STEPS), "latest": "50 %", "lowest": "50 %",
         "highest": "50 %", **{f"p{place}": "50 %" for place in range(6)}},
    ]  # fmt: skip
    assert values["cpu_now"] == "50 %"
    assert values["waiting_note"] == "No requests in this period."
    assert timedelta(seconds=charts.step_seconds) == history_queries.STEPS[HistorySpan.HOUR].step
