from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from services.web import history_charts, history_questions
from services.web.history_charts import Chart, Charts
from services.web.history_lines import Unit
from services.web.history_questions import Question, Span
from shared import errors
from shared.api.history import History, HistoryLine

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
    """That the mesh and the gateway were looked at."""
    whole = line(history_questions.MESH_SEEN, steady(2.0, without=without))
    gateway = line(history_questions.GATEWAY_SEEN, steady(3600.0, without=without), service="gateway")
    return answer(whole), answer(gateway)


def found(**answers: History | errors.AimeshError) -> dict[Question, History | errors.AimeshError]:
    whole, services = looked()
    empty: dict[Question, History | errors.AimeshError] = {
        Question.WHOLE: whole,
        Question.SERVICES: services,
        Question.MODELS: answer(),
        Question.ROUND_TRIPS: answer(),
        Question.MACHINES: answer(),
    }
    return empty | {Question[name.upper()]: each for name, each in answers.items()}


def drawn(answers: Mapping[Question, History | errors.AimeshError], node: str = "", names: Mapping[str, str] | None = None) -> Charts:
    return history_charts.draw(answers, Span.HOUR, names or {}, node)


def chart(charts: Charts, name: str) -> Chart:
    return next(each for each in charts.charts if each.id == name)


def cpu(values: Values | float, node: str = A, service: str = "inference") -> HistoryLine:
    return line(history_questions.OF_MACHINE[Question.CPU], values, service=service, node=node)


def test_requests_that_nobody_made_are_none_a_second_and_those_of_a_gap_are_not_known() -> None:
    whole = (
        line(history_questions.MESH_SEEN, steady(2.0, without=range(6, 20))),
        line(history_questions.COMPLETED, [None] * 100 + [2.0] * 20, status="success"),
        line(history_questions.COMPLETED, [None] * 110 + [1.0] * 10, status="error"),
        line(history_questions.COMPLETED, [None] * 110 + [0.5] * 10, status="timeout"),
    )
    charts = drawn(found(whole=answer(*whole)))
    answered, failed = chart(charts, "requests").lines
    assert (answered.label, answered.latest, failed.label, failed.latest) == ("Answered", "2", "Failed", "1.5")
    points = answered.points.split(",")
    assert (points[5], points[6:20], points[20], points[-1]) == ("0", [""] * 14, "0", "2")
    assert charts.gaps == "No data from 12:03 to 12:10."


def test_ends_that_are_no_failures_have_lines_of_their_own_where_they_are() -> None:
    whole = line(history_questions.MESH_SEEN, 2.0), line(history_questions.COMPLETED, 1.0, status="limited")
    assert [each.label for each in chart(drawn(found(whole=answer(*whole))), "requests").lines] == [
        "Answered", "Failed", "Refused by a limit",
    ]  # fmt: skip


def test_tokens_and_first_tokens_are_the_gateways() -> None:
    services = (
        line(history_questions.GATEWAY_SEEN, steady(1.0, without=range(60)), service="gateway"),
        line(history_questions.TOKENS, steady(7.0, without=range(60)), service="gateway", type="output"),
        line(history_questions.TOKENS, 99.0, service="inference", type="output"),
        line(history_questions.HALF_FIRST, 0.2, service="gateway"),
        line(history_questions.MOST_FIRST, 1.5, service="gateway"),
        line(history_questions.MOST_FIRST, 99.0, service="inference"),
    )
    charts = drawn(found(services=answer(*services)))
    first = chart(charts, "first")
    assert ([(each.label, each.latest) for each in first.lines], first.unit) == (
        [("Half within", "200 ms"), ("95 % within", "1.5 s")], Unit.SECONDS,
    )  # fmt: skip
    tokens = chart(charts, "tokens").lines
    assert [(each.label, each.latest) for each in tokens] == [("In (prompts)", "0"), ("Out (answers)", "7")]
    # While the gateway was away, nobody knows.
    assert tokens[0].points.startswith("," * 60 + "0")


def test_a_gateway_that_was_away_wrote_no_tokens_that_anybody_knows_of() -> None:
    assert chart(drawn(found(services=answer())), "tokens").lines == ()


def test_what_waits_and_what_runs_is_by_model() -> None:
    models = (
        line(history_questions.QUEUE, 1.0, model="small"),
        line(history_questions.QUEUE, 5.0, model="large"),
        line(history_questions.SLOTS, 3.0, model="large", state="busy"),
        line(history_questions.SLOTS, 1.0, model="large", state="free"),
    )
    charts = drawn(found(models=answer(*models)))
    assert [each.label for each in chart(charts, "waiting").lines] == ["large", "small"]
    assert [(each.label, each.highest) for each in chart(charts, "running").lines] == [("large", "3")]


def test_round_trips_are_by_the_way_of_the_links_the_shortest_first() -> None:
    measured = {"nats": 0.0412, "relayed": 0.12, "direct": 0.0004}
    trips = [line(history_questions.ROUND_TRIPS, seconds, path=path) for path, seconds in measured.items()]
    for node in ("", A):
        told = chart(drawn(found(round_trips=answer(*trips)), node=node), "round_trips")
        assert [(each.label, each.latest) for each in told.lines] == [
            ("Direct", "0.4 ms"), ("Through a relay", "120 ms"), ("Over NATS", "41 ms"),
        ]  # fmt: skip
        assert told.note == ""
    assert chart(drawn(found()), "round_trips").note == "No node told of any in this time."


def test_memory_is_the_share_of_what_there_is() -> None:
    used, whole = (history_questions.OF_MACHINE[each] for each in (Question.MEMORY, Question.MEMORY_SIZE))
    lines = (
        line(used, 4e9, service="inference", node=A), line(whole, 16e9, service="inference", node=A),
        # Nobody knows of how much.
        line(used, 4e9, service="inference", node=B),
    )  # fmt: skip
    memory = chart(drawn(found(machines=answer(*lines))), "memory")
    assert [(each.label, each.latest, each.points.split(",")[0]) for each in memory.lines] == [("inference UAAAAAAAA", "25 %", ".25")]


def test_there_are_charts_of_gpus_only_where_there_are_gpus() -> None:
    of_gpus = {"gpu", "gpu_memory", "heat"}
    assert not of_gpus & {each.id for each in drawn(found()).charts}
    heat = line(history_questions.OF_MACHINE[Question.GPU_HEAT], 71.0, service="inference", node=A, gpu="1")
    charts = drawn(found(machines=answer(heat)))
    assert of_gpus & {each.id for each in charts.charts} == {"heat"}
    assert [(each.label, each.latest) for each in chart(charts, "heat").lines] == [("inference UAAAAAAAA GPU 1", "71 °C")]


def test_a_chart_has_twelve_lines_and_says_how_many_are_not_shown() -> None:
    nodes = [f"U{letter * 11}" for letter in "ABCDEFGHIJKLMNOP"]
    cpus = [cpu(place / 100, node) for place, node in enumerate(nodes)]
    disk = history_questions.OF_MACHINE[Question.DISK]
    disks = [line(disk, place * 1e9, service="inference", node=node) for place, node in enumerate(nodes)]
    charts = drawn(found(machines=answer(*cpus, *disks)))
    busiest, fullest = chart(charts, "cpu"), chart(charts, "disk")
    # In the order of their names, so that each keeps its colour.
    assert [each.label for each in busiest.lines] == [f"inference U{letter * 8}" for letter in "EFGHIJKLMNOP"]
    assert busiest.note == "4 more are not shown: these are the busiest."
    assert [each.label for each in fullest.lines] == [f"inference U{letter * 8}" for letter in "ABCDEFGHIJKL"]
    assert fullest.note == "4 more are not shown: these are the fullest."


def test_a_machine_that_was_away_alone_is_named_by_what_nobody_could_make_up() -> None:
    lines = (cpu(steady(0.5, without=range(6, 20)), A), cpu(steady(0.4, without=range(100, 120)), B))
    charts = drawn(found(machines=answer(*lines)), names={A: "\u202eevil"})
    assert chart(charts, "cpu").note == "UBBBBBBBB: no data since 12:50. UAAAAAAAA: no data from 12:03 to 12:10."
    assert charts.gaps == ""


def test_a_gap_of_all_is_said_once() -> None:
    whole, services = looked(without=range(6, 20))
    lines = (cpu(steady(0.5, without=range(6, 20))),)
    charts = drawn(found(whole=whole, services=services, machines=answer(*lines)))
    assert (charts.gaps, chart(charts, "cpu").note) == ("No data from 12:03 to 12:10.", "")


def test_many_broken_machines_are_counted() -> None:
    lines = [cpu(steady(0.5, without=range(6, 20)), f"U{letter * 11}") for letter in "ABCDE"]
    note = chart(drawn(found(machines=answer(*lines))), "cpu").note
    assert note.count("no data") == 3
    assert note.endswith(" 2 more have gaps.")


def test_a_history_that_has_just_begun_says_so() -> None:
    whole, _ = looked(without=range(40))
    assert drawn(found(whole=whole)).gaps == "The history begins at 12:20."


def test_nothing_yet_is_an_empty_page() -> None:
    assert drawn(found(whole=answer())).is_empty
    assert drawn(found(whole=answer(line(history_questions.MESH_SEEN, steady(None))))).is_empty


def test_machines_are_called_as_people_call_them() -> None:
    lines = cpu(0.5, A), cpu(0.4, B, "gateway")
    labels = [each.label for each in chart(drawn(found(machines=answer(*lines)), names={A: "rig"}), "cpu").lines]
    assert labels == ["gateway UBBBBBBBB", "rig UAAAAAAAA"]


def test_the_page_of_one_machine_has_its_lines_alone() -> None:
    charts = drawn(found(machines=answer(cpu(0.5, A), cpu(0.4, B))), node=B)
    assert {"requests", "first", "tokens", "waiting", "running"} & {each.id for each in charts.charts} == set()
    assert [each.label for each in chart(charts, "cpu").lines] == ["inference UBBBBBBBB"]


def test_too_many_machines_for_one_answer_are_asked_for_one_by_one_or_drawn_together() -> None:
    answers = found(machines=REFUSED) | dict.fromkeys(history_questions.OF_MACHINE, answer()) | {Question.CPU: answer(cpu(0.5))}
    assert [each.label for each in chart(drawn(answers), "cpu").lines] == ["inference UAAAAAAAA"]
    together = answer(line(history_questions.OF_MACHINE[Question.CPU], 0.3, service="inference"))
    answers = found(machines=REFUSED) | dict.fromkeys(history_questions.OF_MACHINE, REFUSED) | {Question.TOGETHER: together}
    assert [(each.label, each.latest) for each in chart(drawn(answers), "cpu").lines] == [("inference", "30 %")]
    # Whoever asks of one machine is not told of all.
    alone = chart(drawn(answers, node=A), "cpu")
    assert (alone.lines, alone.note) == ((), "This could not be read: that would be 412 lines.")


def test_a_chart_that_could_not_be_read_says_why_and_the_others_stand() -> None:
    charts = drawn(found(models=AWAY, machines=answer(cpu(0.5))))
    assert (chart(charts, "waiting").lines, chart(charts, "waiting").note) == ((), "This could not be read: nobody there.")
    assert len(chart(charts, "cpu").lines) == 1


def test_without_a_word_about_the_whole_there_is_nothing_to_draw() -> None:
    with pytest.raises(errors.NotReachable):
        drawn(found(whole=AWAY))


def test_a_table_has_the_mean_of_each_ten_minutes() -> None:
    values = [float(step // 20) for step in range(STEPS)]
    charts = drawn(found(machines=answer(cpu([each / 10 for each in values]))))
    assert charts.periods == ("12:00", "12:10", "12:20", "12:30", "12:40", "12:50")
    only = chart(charts, "cpu").lines[0]
    assert only.periods == ("0 %", "10 %", "20 %", "30 %", "40 %", "50 %")
    assert (only.lowest, only.highest) == ("0 %", "50 %")


def test_an_open_page_gets_what_it_names() -> None:
    charts = drawn(found(machines=answer(cpu(0.5))))
    values = history_charts.values(charts)
    assert (values["since"], values["p0"], values["gaps"]) == (str(int(SINCE.timestamp())), "12:00", "")
    assert values["cpu"] == [
        {"id": f"{A} inference", "label": "inference UAAAAAAAA", "points": ",".join([".5"] * STEPS), "latest": "50 %", "lowest": "50 %",
         "highest": "50 %", **{f"p{place}": "50 %" for place in range(6)}},
    ]  # fmt: skip
    assert values["waiting_note"] == "No requests for a model in this time."
    assert timedelta(seconds=charts.step_seconds) == history_questions.STEPS[Span.HOUR].step
