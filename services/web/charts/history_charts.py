"""Define the admin charts, and format their lines. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from enum import Enum, auto

from services.web.charts import history_queries, history_view
from services.web.charts.history_answers import HistoryAnswers, HistorySeries
from services.web.charts.history_queries import HistoryQuery, HistorySpan
from services.web.charts.history_view import ChartUnit, Grid, Values
from shared import errors
from shared.api.metrics import History

#: Lines per chart: more colors and dashes are hard to tell apart.
MAX_LINES = 12
#: How many machines with gaps a chart lists.
_MAX_BROKEN = 3


@dataclass(frozen=True, slots=True)
class HistoryChartLine:
    """One line of a chart. It has only strings, because templates and live events share it."""

    id: str = ""
    label: str = ""
    #: The values of all steps for the script; empty means unknown.
    points: str = ""
    latest: str = ""
    #: The average of each table column.
    periods: tuple[str, ...] = ()
    lowest: str = ""
    highest: str = ""


@dataclass(frozen=True, slots=True)
class HistoryChart:
    id: str
    title: str
    unit: ChartUnit
    #: How to read it.
    hint: str
    lines: tuple[HistoryChartLine, ...]
    #: Gaps, omitted lines, or why there are no lines.
    note: str
    #: The current value, for the heading; empty if unknown.
    now: str = ""


@dataclass(frozen=True, slots=True)
class HistoryCharts:
    #: The start of the first step, in Unix seconds.
    since: str = ""
    step_seconds: int = 0
    #: The start of each table column.
    periods: tuple[str, ...] = ()
    charts: tuple[HistoryChart, ...] = ()
    #: Periods without any data.
    gaps: str = ""
    is_empty: bool = True
    #: The template for rows added later.
    blank: HistoryChartLine = field(default_factory=HistoryChartLine)


class _Subject(Enum):
    """The subject of a chart. The page of one node has no charts of the mesh."""

    MESH = auto()
    MACHINES = auto()
    #: The mesh, or the node on its own page.
    EITHER = auto()


class _CurrentValue(Enum):
    """How the heading sums up the current values of all lines."""

    TOTAL = auto()
    #: The last line, with its label.
    LAST = auto()
    HIGHEST = auto()
    LOWEST = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    id: str
    title: str
    unit: ChartUnit
    find: Callable[[HistoryAnswers], list[HistorySeries]]
    hint: str = ""
    about: _Subject = _Subject.MESH
    #: The note without lines; if empty, the chart is left out then.
    nothing: str = ""
    #: Selects the lines to show. None: the chart has few lines, in their own order.
    rank: Callable[[Values], float] | None = None
    now: _CurrentValue = _CurrentValue.TOTAL


def _busiest(values: Values) -> float:
    return -(history_view.mean(values) or 0.0)


def _fullest(values: Values) -> float:
    return history_view.mean(values) or 0.0


_PLANS = (
    _Plan(id="requests", title="Requests per second", unit=ChartUnit.RATE, find=HistoryAnswers.requests),
    _Plan(
        id="first", title="Time to first text", unit=ChartUnit.SECONDS, find=HistoryAnswers.first_tokens,
        nothing="No requests in this period.",
        hint="Estimated from buckets of 0.1, 0.5, 1, 2.5 and 10 s. Periods without requests have no line.", now=_CurrentValue.LAST,
    ),
    _Plan(
        id="tokens", title="Tokens per second", unit=ChartUnit.RATE, find=HistoryAnswers.tokens,
        nothing="No data from a gateway in this period.",
    ),
    _Plan(
        id="waiting", title="Queued requests", unit=ChartUnit.COUNT, find=HistoryAnswers.waiting, rank=_busiest,
        nothing="No requests in this period.",
    ),
    _Plan(
        id="running", title="Running requests", unit=ChartUnit.COUNT, find=HistoryAnswers.running, rank=_busiest,
        nothing="No worker has loaded a model.",
    ),
    _Plan(
        id="round_trips", title="Round trips", unit=ChartUnit.SECONDS, find=HistoryAnswers.round_trips, about=_Subject.EITHER,
        nothing="No data in this period.", hint="Average over open links, by path.", now=_CurrentValue.HIGHEST,
    ),
    _Plan(
        id="cpu", title="CPU", unit=ChartUnit.SHARE, find=lambda answers: answers.machines(HistoryQuery.CPU), rank=_busiest,
        nothing="No data from machines.", about=_Subject.MACHINES, now=_CurrentValue.HIGHEST,
    ),
    _Plan(
        id="memory", title="Memory", unit=ChartUnit.SHARE, find=lambda answers: answers.shares(HistoryQuery.MEMORY,
        HistoryQuery.MEMORY_SIZE),
        rank=_busiest, nothing="No data from machines.", about=_Subject.MACHINES, now=_CurrentValue.HIGHEST,
    ),
    _Plan(
        id="disk", title="Free disk space", unit=ChartUnit.BYTES, find=lambda answers: answers.machines(HistoryQuery.DISK),
        rank=_fullest,
        nothing="No data from machines.", hint="The disk that holds the node’s files.", about=_Subject.MACHINES, now=_CurrentValue.LOWEST,
    ),
    _Plan(
        id="gpu", title="GPU usage", unit=ChartUnit.SHARE, rank=_busiest, about=_Subject.MACHINES, now=_CurrentValue.HIGHEST,
        find=lambda answers: answers.machines(HistoryQuery.GPU),
    ),
    _Plan(
        id="gpu_memory", title="GPU memory", unit=ChartUnit.SHARE, rank=_busiest, about=_Subject.MACHINES, now=_CurrentValue.HIGHEST,
        find=lambda answers: answers.shares(HistoryQuery.GPU_MEMORY, HistoryQuery.GPU_MEMORY_SIZE),
    ),
    _Plan(
        id="heat", title="GPU temperature", unit=ChartUnit.CELSIUS, find=lambda answers: answers.machines(HistoryQuery.GPU_HEAT),
        rank=_busiest,
        about=_Subject.MACHINES, now=_CurrentValue.HIGHEST,
    ),
)  # fmt: skip


def draw(
    found: Mapping[HistoryQuery, History | errors.AimeshError], span: HistorySpan, names: Mapping[str, str], node: str = ""
) -> HistoryCharts:
    """Return the charts. ``names`` has the node names by the stored part of the id; ``node`` restricts the charts to one node.

    Raises the error of the metrics service if the collection times are unavailable.
    """
    whole = found[HistoryQuery.WHOLE]
    if isinstance(whole, errors.AimeshError):
        raise whole
    grid = Grid(whole.since, timedelta(seconds=whole.step_seconds), max(len(line.values) for line in whole.lines) if whole.lines else 0)
    answers = HistoryAnswers(found, grid, names, node)
    seen = answers.collected_steps()
    if history_view.first_known(seen) is None:
        return HistoryCharts()
    columns = _columns(grid, span)
    drawn = (_chart(plan, answers, columns) for plan in _PLANS if plan.about is not _Subject.MESH or not node)
    return HistoryCharts(
        since=str(int(grid.since.timestamp())),
        step_seconds=whole.step_seconds,
        periods=tuple(history_view.moment(grid.begins(column.start), grid) for column in columns),
        charts=tuple(chart for chart in drawn if chart is not None),
        gaps=_describe_gaps(seen, grid),
        is_empty=False,
        blank=HistoryChartLine(periods=("",) * len(columns)),
    )


def values(charts: HistoryCharts) -> dict[str, object]:
    """Return the live values."""
    found: dict[str, object] = {"since": charts.since, "gaps": charts.gaps}
    found |= {f"p{place}": text for place, text in enumerate(charts.periods)}
    for chart in charts.charts:
        found |= {chart.id: [_plain(line) for line in chart.lines], f"{chart.id}_note": chart.note, f"{chart.id}_now": chart.now}
    return found


def _plain(line: HistoryChartLine) -> dict[str, str]:
    facts = asdict(line)
    return {f"p{place}": text for place, text in enumerate(facts.pop("periods"))} | facts


def _columns(grid: Grid, span: HistorySpan) -> list[slice]:
    whole, period = history_queries.STEPS[span].whole, history_queries.STEPS[span].period
    each = max(1, period // grid.step)
    return [slice(begin, begin + each) for begin in range(0, max(1, whole // grid.step), each)]


def _chart(plan: _Plan, answers: HistoryAnswers, columns: Sequence[slice]) -> HistoryChart | None:
    try:
        found, trouble = plan.find(answers), ""
    except errors.AimeshError as error:
        found, trouble = [], f"Unavailable: {error.message}."
    known = [one for one in found if history_view.first_known(one.values) is not None]
    if not known and not trouble and not plan.nothing:
        return None
    shown = known[:MAX_LINES] if plan.rank is None else _chosen(known, plan.rank)
    note = trouble or (_note(plan, shown, len(known) - len(shown), answers) if known else plan.nothing)
    lines = tuple(_line(plan.unit, one, columns) for one in shown)
    return HistoryChart(plan.id, plan.title, plan.unit, plan.hint, lines, note, _format_current(plan, known))


def _chosen(known: Sequence[HistorySeries], rank: Callable[[Values], float]) -> list[HistorySeries]:
    """Return the top lines sorted by name, so that lines keep their colors when their ranks change."""
    most = sorted(known, key=lambda one: (rank(one.values), one.label, one.id))[:MAX_LINES]
    return sorted(most, key=lambda one: (one.label, one.id))


def _note(plan: _Plan, shown: Sequence[HistorySeries], left_out: int, answers: HistoryAnswers) -> str:
    parts = []
    if left_out:
        chosen = "fullest" if plan.rank is _fullest else "busiest"
        parts.append(f"Showing the {len(shown)} {chosen}; {left_out} more not shown.")
    if plan.about is _Subject.MACHINES:
        parts += _describe_machine_gaps(shown, answers)
    return " ".join(parts)


def _describe_machine_gaps(shown: Sequence[HistorySeries], answers: HistoryAnswers) -> list[str]:
    """Describe the gaps of machines while others had data."""
    whole = history_view.gaps(answers.collected_steps())
    broken = [(one, own) for one in shown if (own := [gap for gap in history_view.gaps(one.values) if gap not in whole])]
    notes = [f"{one.short}: {history_view.describe_gaps(own, answers.grid)}." for one, own in broken[:_MAX_BROKEN]]
    return [*notes, f"{len(broken) - _MAX_BROKEN} more with gaps."] if len(broken) > _MAX_BROKEN else notes


def _describe_gaps(seen: Values, grid: Grid) -> str:
    first = history_view.first_known(seen) or 0
    parts = [f"The history starts at {history_view.moment(grid.begins(first), grid)}."] if first > history_view.NOT_YET else []
    if gaps := history_view.describe_gaps(history_view.gaps(seen), grid):
        parts.append(f"{gaps[0].upper()}{gaps[1:]}.")
    return " ".join(parts)


def _format_current(plan: _Plan, known: Sequence[HistorySeries]) -> str:
    latest = [value for one in known if (value := history_view.latest(one.values)) is not None]
    if not latest:
        return ""
    several = len(latest) > 1
    match plan.now:
        case _CurrentValue.TOTAL:
            return history_view.text(plan.unit, sum(latest))
        case _CurrentValue.LAST:
            return f"{known[-1].label} {history_view.text(plan.unit, history_view.latest(known[-1].values))}"
        case _CurrentValue.HIGHEST:
            return f"{'max ' if several else ''}{history_view.text(plan.unit, max(latest))}"
        case _CurrentValue.LOWEST:
            return f"{'min ' if several else ''}{history_view.text(plan.unit, min(latest))}"


def _line(unit: ChartUnit, one: HistorySeries, columns: Sequence[slice]) -> HistoryChartLine:
    means = (history_view.mean(one.values[column]) for column in columns)
    return HistoryChartLine(
        id=one.id,
        label=one.label,
        points=history_view.written(unit, one.values),
        latest=history_view.text(unit, history_view.latest(one.values)),
        periods=tuple(history_view.text(unit, mean) for mean in means),
        lowest=history_view.text(unit, history_view.lowest(one.values)),
        highest=history_view.text(unit, history_view.highest(one.values)),
    )
