"""Every dashboard can be drawn: its queries are PromQL, use existing metrics and labels, and have a unit for their values."""

import re
from collections.abc import Iterator

import promql_parser
import pytest
import yaml

from services.metrics.alerting import rules
from shared.telemetry.answer_instruments import AnswerInstruments
from tests.deploy.grafana_boards import BOARDS, GRAFANA, SERVICE_LEVEL
from tests.deploy.promql import LABELS, selectors

SOURCES = {kind: {"type": kind, "uid": f"${{{kind}_datasource}}"} for kind in ("prometheus", "loki")}
#: What values of metrics are, in Grafana's words.
UNITS = {"s", "bytes", "Bps", "percentunit", "reqps", "ops", "short", "watt", "celsius", "bool_yes_no"}


def queries() -> Iterator[tuple[str, str, str, str]]:
    for board, written in BOARDS.items():
        for panel in written["panels"]:
            for query in panel["targets"]:
                if panel["type"] != "logs":
                    yield board, panel["title"], query["expr"], query["legendFormat"]


QUERIES = tuple(queries())


@pytest.mark.parametrize(("board", "panel", "expression"), [query[:3] for query in QUERIES], ids=lambda value: value[:60])
def test_a_query_names_what_there_is(board: str, panel: str, expression: str) -> None:
    parsed = promql_parser.parse(expression.replace("$__rate_interval", "5m"))
    found = list(selectors(parsed))
    assert found, "it names no series"
    for selector in found:
        assert selector.name in LABELS, f"{board}, {panel}: there is no metric {selector.name}"
        used = {matcher.name for matcher in selector.matchers.matchers if matcher.name != "__name__"}
        assert used <= LABELS[selector.name], f"{board}, {panel}: {selector.name} has no label {used - LABELS[selector.name]}"


def test_the_check_finds_what_there_is_not() -> None:
    with pytest.raises(AssertionError, match="there is no metric"):
        test_a_query_names_what_there_is("board", "panel", "sum(rate(ai_platform_no_such_total[5m]))")
    with pytest.raises(AssertionError, match="has no label"):
        test_a_query_names_what_there_is("board", "panel", 'sum(ai_platform_queue_depth{user="ann"}) / 5')


@pytest.mark.parametrize(("expression", "legend"), [query[2:] for query in QUERIES], ids=lambda value: value[:60])
def test_the_labels_of_a_legend_are_those_of_its_lines(expression: str, legend: str) -> None:
    wanted = set(re.findall(r"\{\{(\w+)\}\}", legend))
    grouped = [set(re.findall(r"\w+", group)) for group in re.findall(r"by \(([^)]*)\)", expression)]
    assert all(wanted <= group for group in grouped), f"{wanted} is not in {grouped}"
    assert not wanted or grouped, "lines that are not grouped have all labels, and no name for people"


def test_a_panel_says_whether_it_shows_the_first_text_or_the_whole_answer() -> None:
    first, whole = AnswerInstruments.ttft_seconds.name, "gen_ai_client_operation_duration_seconds"
    titles = {name: {title for _, title, expression, _ in QUERIES if f"{name}_" in expression} for name in (first, whole)}
    assert titles[first], "no panel shows the first text"
    assert all("first text" in title.lower() for title in titles[first]), titles[first]
    # The design asks for an average response below 5 s: of whole answers that succeeded, however soon they begin.
    averages = [panel for panel in SERVICE_LEVEL["panels"] if panel["title"].startswith("Average whole answer")]
    assert {panel["title"] for panel in averages} == titles[whole]
    for panel in averages:
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1] == {"color": "red", "value": 5}
        for query in panel["targets"]:
            assert f'{whole}_sum{{error_type=""}}' in query["expr"]
            assert f'{whole}_count{{error_type=""}}' in query["expr"]


@pytest.mark.parametrize("board", BOARDS)
def test_a_board_is_whole(board: str) -> None:
    there = BOARDS[board]
    assert there["uid"] == board
    own = ("uid", "title", "description", "panels")
    assert {name: value for name, value in there.items() if name not in own} == {
        name: value for name, value in SERVICE_LEVEL.items() if name not in own
    }, "boards differ in their range, refresh, links or variables"
    assert {variable["name"] for variable in there["templating"]["list"]} == {"prometheus_datasource", "loki_datasource"}
    for unique in ("id", "title"):
        assert len({panel[unique] for panel in there["panels"]}) == len(there["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in there["panels"]:
        is_log = panel["type"] == "logs"
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS or is_log
        for source in (panel["datasource"], *(query["datasource"] for query in panel["targets"])):
            assert source == SOURCES["loki" if is_log else "prometheus"], "no source is fixed"
        assert len({query["refId"] for query in panel["targets"]}) == len(panel["targets"])
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, f"{panel['title']} lies over another"
        assert all(x < 24 for x, _ in cells)
        taken |= cells


def test_there_is_a_board_for_every_alert() -> None:
    assert {rule.texts.board for rule in rules.load()} <= set(BOARDS)


def test_a_chart_leads_to_its_traces_and_a_trace_to_its_logs_and_back() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "aimesh.yml").read_text(encoding="utf-8"))["datasources"]
    by_type = {source["type"]: source for source in sources}
    assert {source["uid"] for source in sources} == {"prometheus", "loki", "jaeger"}
    assert by_type["prometheus"]["jsonData"]["exemplarTraceIdDestinations"] == [{"name": "trace_id", "datasourceUid": "jaeger"}]
    assert by_type["jaeger"]["jsonData"]["tracesToLogsV2"]["datasourceUid"] == "loki"
    [field] = by_type["loki"]["jsonData"]["derivedFields"]
    assert (field["matcherType"], field["matcherRegex"], field["datasourceUid"]) == ("label", "trace_id", "jaeger")
    [folder] = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "aimesh.yml").read_text(encoding="utf-8"))["providers"]
    assert folder["options"]["path"] == "/etc/grafana/dashboards"
