"""Rendering a frame as the text on the screen."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.top import frame, text_view
from cli.top.frame import FiringAlert, TopFrame, UnhealthyComponent
from cli.top.readings import MeshReadings, NodeLoad, Numbers, SourceAnswer
from cli.top.text_view import COLUMNS, Line, View
from shared import errors
from shared.api.alerts import Alerts
from shared.api.gateway import NodeRows
from shared.api.metrics import ComponentHealth, SystemHealth
from shared.types import ModelName, NodeId
from tests.cli.top import seen
from tests.cli.top.seen import AT, WORKER

FRAME = frame.make(
    MeshReadings(
        health=SourceAnswer(seen.HEALTH),
        alerts=SourceAnswer(Alerts((seen.alert(), seen.alert("queue_depth_high")), ())),
        nodes=SourceAnswer(NodeRows(seen.NODES)),
        numbers=SourceAnswer(
            Numbers(
                requests=12,
                errors=0.5,
                input_tokens=340,
                output_tokens=1234,
                queues={"smollm2": 3, "echo": 1},
                loads={WORKER[:12]: NodeLoad(cpu=0.5, gpu=0.914, memory=0.75, tokens_per_second=80)},
            )
        ),
    ),
    0.0,
    AT,
)


def many(count: int) -> TopFrame:
    rows = tuple(seen.node(NodeId(f"U{number:08}"), running=number % 7, slots=8) for number in range(count))
    return frame.make(MeshReadings(nodes=SourceAnswer(NodeRows(rows))), 0.0, AT)


def text(line: Line) -> str:
    return "".join(span.text for span in line)


def shown(found: TopFrame, view: View = View(), width: int = 120, height: int = 40) -> list[str]:  # noqa: B008 - frozen
    return [text(line) for line in text_view.fitted(found, view, width, height)]


def first_words(found: TopFrame, view: View) -> list[str]:
    rows = shown(found, view)
    return [row.split()[0] for row in rows[next(place for place, row in enumerate(rows) if row.startswith("NODE")) + 1 :]]


def test_most_severe_problem_comes_first_then_rates_then_nodes() -> None:
    rows = text_view.whole(FRAME)
    assert rows[0].startswith("aimesh Degraded   2 alerts")
    assert rows[1:] == [
        "Down      worker UGONEBBBB, 12 s: gone without a word",
        "warning   worker_gone, 5 min: A worker is gone",
        "warning   queue_depth_high, 5 min: A worker is gone",
        "12 requests/s   0.5 errors/s   tokens/s: 340 in, 1,234 out   2 running",
        "waiting: smollm2 3, echo 1",
        "",
        "NODE       KIND       STATE  PATH       RTT  CPU  GPU  MEMORY  RUNNING  TOKENS/S  MODELS   WHY NOT",
        "UGATEWAYC  gateway    OK     Local        –    –    –       –        –         –  –        –",
        "UGONEBBBB  inference  Down   –            –    –    –       –        –         –  smollm2  no heartbeat",
        "UWORKERAA  inference  OK     Direct  1.2 ms  50%  91%     75%   2/4 +1        80  smollm2  –",
    ]


def test_drafts_are_shown_while_there_are_any() -> None:
    def rates(drafted: float, accepted: float) -> str:
        found = Numbers(requests=2, drafted_tokens=drafted, accepted_tokens=accepted)
        return next(row for row in text_view.whole(frame.make(MeshReadings(numbers=SourceAnswer(found)), 0.0, AT)) if "requests/s" in row)

    assert rates(16, 12).endswith("   drafts: 16 tokens/s, 75% accepted")
    assert "drafts" not in rates(0, 0)


def test_common_reason_is_shown_once_and_the_table_is_dimmed() -> None:
    away = errors.NotReachable("no gateway answers")
    found = frame.make(
        MeshReadings(nodes=SourceAnswer(NodeRows(seen.NODES), 1.0).missed(away), numbers=SourceAnswer(problem=away)), 15.0, AT
    )
    assert "the nodes, the rates: 14 s old – no gateway answers" in shown(found)
    *_, last = text_view.fitted(found, View(), 120, 40)
    assert {span.style for span in last if span.text.strip()} == {"dim"}
    never = frame.make(MeshReadings(health=SourceAnswer(problem=away)), 15.0, AT)
    assert "the health: unknown – no gateway answers" in shown(never)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (10, 3), (40, 8), (80, 24), (300, 100)])
@pytest.mark.parametrize("above", [0, 1, 1000])
def test_no_line_or_page_exceeds_the_terminal(width: int, height: int, above: int) -> None:
    for found in (FRAME, many(300)):
        rows = shown(found, text_view.scrolled(found, View(above=above), width, height), width, height)
        assert len(rows) <= height
        assert max(map(len, rows)) <= width
        if height > 20:
            assert rows[-1].startswith("U")


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (120, "NODE KIND STATE PATH RTT CPU GPU MEMORY RUNNING TOKENS/S MODELS WHY NOT"),
        # In a terminal of usual width, load and speed matter more than memory.
        (80, "NODE KIND STATE PATH CPU GPU RUNNING TOKENS/S MODELS"),
        (60, "NODE STATE CPU GPU RUNNING TOKENS/S MODELS"),
        (48, "NODE STATE RUNNING TOKENS/S MODELS"),
        (20, "NODE STATE RU"),
    ],
)
def test_narrow_terminal_hides_the_least_important_columns(width: int, titles: str) -> None:
    (heading,) = (row for row in shown(FRAME, width=width) if row.startswith("NODE"))
    assert " ".join(heading.split()) == titles


def test_empty_column_is_hidden_unless_sorted_by() -> None:
    by = [column.title for column in COLUMNS].index("GPU MEM")
    for width in (120, 80, 60):
        assert not [row for row in shown(FRAME, width=width) if "GPU MEM" in row]
        (heading,) = (row for row in shown(FRAME, View(sort=by), width=width) if row.startswith("NODE"))
        assert "GPU MEM" in heading


def test_state_has_its_color_everywhere() -> None:
    for width in (120, 50):
        *_, gone, _ = text_view.fitted(FRAME, View(), width, 40)
        assert [(span.text.strip(), span.style) for span in gone if span.style] == [("Down", "red")]


def test_scroll_to_the_last_node_and_back() -> None:
    found, view = many(50), View()
    for _ in range(100):
        view = text_view.scrolled(found, text_view.press(view, "down") or View(), 120, 24)
    assert shown(found, view, height=24)[-1].startswith("U00000049")
    for key in ["up"] * 100:
        view = text_view.scrolled(found, text_view.press(view, key) or View(), 120, 24)
    assert view == View()


def test_s_cycles_through_sortable_columns_highest_first() -> None:
    view, titles = View(), []
    while True:
        pressed = text_view.press(view, "s")
        assert pressed is not None
        view = pressed
        if view.sort == 0:
            break
        titles.append(COLUMNS[view.sort].title)
    assert titles == ["RTT", "CPU", "GPU", "MEMORY", "GPU MEM", "RUNNING", "TOKENS/S"]
    running = View(sort=[column.title for column in COLUMNS].index("RUNNING"))
    assert first_words(many(9), running)[:3] == ["U00000006", "U00000005", "U00000004"]
    cpu = View(sort=[column.title for column in COLUMNS].index("CPU"))
    assert first_words(FRAME, cpu)[0] == WORKER[:9]


def test_page_up_page_down_home_and_end() -> None:
    found, view = many(200), View()
    tops = []
    for key in ("page down", "page down", "page up", "end", "page down", "home", "page up"):
        view = text_view.scrolled(found, text_view.press(view, key) or View(), 120, 24)
        tops.append(first_words(found, view)[0])
    assert tops[:3] == ["U00000010", "U00000020", "U00000010"]
    assert tops[3:] == [tops[3]] * 2 + ["U00000000"] * 2


def test_hidden_rows_are_counted_with_a_hint() -> None:
    parts = tuple(ComponentHealth(name=f"w{number}", kind="worker", status="down", since=AT) for number in range(9))
    alerts = Alerts(tuple(seen.alert(f"number_{number}") for number in range(7)), ())
    found = frame.make(
        MeshReadings(health=SourceAnswer(SystemHealth(status="down", components=parts)), alerts=SourceAnswer(alerts)), 0.0, AT
    )
    rows = text_view.whole(found)
    assert rows[6] == "and 4 more: /admin in the browser"
    assert rows[12] == "and 2 more: aicli alerts list"
    assert not [row for row in text_view.whole(FRAME) if " more: " in row]


LONG = "it went without a goodbye, see `aicli worker status` on its machine: it has been silent for 3.0 s"


def test_long_reason_wraps_if_there_is_space() -> None:
    ill = UnhealthyComponent("UGONEBBBB", "worker", "down", 12, LONG)
    found = msgspec.structs.replace(FRAME, wrong=(ill,))
    rows = shown(found, width=80, height=24)
    assert rows[1:3] == [
        "Down      worker UGONEBBBB, 12 s: it went without a goodbye, see `aicli worker",
        "          status` on its machine: it has been silent for 3.0 s",
    ]
    assert rows[-1].startswith("UWORKERAA")
    assert shown(found, width=160, height=24)[1].endswith("3.0 s")
    assert f"Down      worker UGONEBBBB, 12 s: {LONG}" in text_view.whole(found)
    endless = msgspec.structs.replace(FRAME, wrong=(UnhealthyComponent("UGONEBBBB", "worker", "down", 12, LONG * 9),))
    assert shown(endless, width=80, height=24)[2].endswith(" …")
    assert shown(endless, width=80, height=24)[3].startswith("warning")


def test_nodes_take_space_before_long_reasons() -> None:
    found = msgspec.structs.replace(many(50), wrong=(UnhealthyComponent("UGONEBBBB", "worker", "down", 12, LONG),) * 3)
    tall, low = shown(found, width=80, height=24), shown(found, width=80, height=15)
    assert sum(row.startswith("    ") for row in tall) == 3
    assert not [row for row in low if row.startswith("    ")]
    assert sum(row.startswith("U0") for row in low) == 15 - 7
    last = shown(found, text_view.scrolled(found, View(above=1_000_000), 80, 24), width=80, height=24)[-1]
    assert last.startswith("U00000049")


def test_q_quits_and_other_keys_do_nothing() -> None:
    view = View(sort=5, above=3)
    assert text_view.press(view, "q") is None
    assert [text_view.press(view, key) for key in ("x", "", "left")] == [view] * 3


@given(st.text())
def test_text_from_the_mesh_cannot_move_the_cursor_or_add_lines(message: str) -> None:
    found = msgspec.structs.replace(
        FRAME,
        health=message,
        wrong=(UnhealthyComponent(message, message, message, 1.0, message),),
        alerts=(FiringAlert(message, message, 1.0, message, silenced=False),),
        queues={message: 2.0},
        nodes=(msgspec.structs.replace(FRAME.nodes[1], id=message, kind=message, path=message, models=(ModelName(message),)),),
        silent=(frame.SilentSource("nodes", message, None),),
    )
    for row in (*text_view.whole(found), *shown(found, width=1000)):
        assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in row)
