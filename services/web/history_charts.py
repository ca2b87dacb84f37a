"""Define the admin charts, and format their lines. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from enum import Enum, auto

from services.web import history_lines, history_questions
from services.web.history_answers import Answers, Series
from services.web.history_lines import Grid, Unit, Values
from services.web.history_questions import Question, Span
from shared import errors
from shared.api.history import History

#: Lines per chart: more colors and dashes are hard to tell apart.
MOST_LINES = 12
#: How many machines with gaps a chart lists.
_MOST_BROKEN = 3


@dataclass(frozen=True, slots=True)
class Line:
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
class Chart:
    id: str
    title: str
    unit: Unit
    #: How to read it.
    hint: str
    #: The rows of the table.
    lines: tuple[Line, ...]
    #: Gaps, omitted lines, or why there are no lines.
    note: str
    #: The current value, for the heading; empty if unknown.
    now: str = ""


@dataclass(frozen=True, slots=True)
class Charts:
    #: The start of the first step, in Unix seconds.
    since: str = ""
    step_seconds: int = 0
    #: The start of each table column.
    periods: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    #: Periods without any data.
    gaps: str = ""
    #: Whether there is no data at all.
    is_empty: bool = True
    #: The template for rows added later.
    blank: Line = field(default_factory=Line)


class _About(Enum):
    """The subject of a chart. The page of one node has no charts of the mesh."""

    MESH = auto()
    MACHINES = auto()
    #: The mesh, or the node on its own page.
    EITHER = auto()


class _Now(Enum):
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
    unit: Unit
    find: Callable[[Answers], list[Series]]
    hint: str = ""
    about: _About = _About.MESH
    #: The note without lines; if empty, the chart is left out then.
    nothing: str = ""
    #: Selects the lines to show. None: the chart has few lines, in their own order.
    rank: Callable[[Values], float] | None = None
    now: _Now = _Now.TOTAL


def _busiest(values: Values) -> float:
    return -(history_lines.mean(values) or 0.0)


def _fullest(values: Values) -> float:
    """Rank by free space."""
    return history_lines.mean(values) or 0.0


_PLANS = (
    _Plan(id="requests", title="Requests per second", unit=Unit.RATE, find=Answers.requests),
    _Plan(
        id="first", title="Time to first token", unit=Unit.SECONDS, find=Answers.first_tokens, nothing="No requests in this period.",
        hint="Estimated from buckets of 0.1, 0.5, 1, 2.5 and 10 s. Periods without requests have no line.", now=_Now.LAST,
    ),
    _Plan(
        id="tokens", title="Tokens per second", unit=Unit.RATE, find=Answers.tokens, nothing="No data from a gateway in this period.",
    ),
    _Plan(
        id="waiting", title="Queued requests", unit=Unit.COUNT, find=Answers.waiting, rank=_busiest,
        nothing="No requests in this period.",
    ),
    _Plan(
        id="running", title="Running requests", unit=Unit.COUNT, find=Answers.running, rank=_busiest,
        nothing="No worker has loaded a model.",
    ),
    _Plan(
        id="round_trips", title="Round trips", unit=Unit.SECONDS, find=Answers.round_trips, about=_About.EITHER,
        nothing="No data in this period.", hint="Average over open links, by path.", now=_Now.HIGHEST,
    ),
    _Plan(
        id="cpu", title="CPU", unit=Unit.SHARE, find=lambda answers: answers.machines(Question.CPU), rank=_busiest,
        nothing="No data from machines.", about=_About.MACHINES, now=_Now.HIGHEST,
    ),
    _Plan(
        id="memory", title="Memory", unit=Unit.SHARE, find=lambda answers: answers.shares(Question.MEMORY, Question.MEMORY_SIZE),
        rank=_busiest, nothing="No data from machines.", about=_About.MACHINES, now=_Now.HIGHEST,
    ),
    _Plan(
        id="disk", title="Free disk space", unit=Unit.BYTES, find=lambda answers: answers.machines(Question.DISK), rank=_fullest,
        nothing="No data from machines.", hint="The disk that holds the node’s files.", about=_About.MACHINES, now=_Now.LOWEST,
    ),
    _Plan(
        id="gpu", title="GPU usage", unit=Unit.SHARE, rank=_busiest, about=_About.MACHINES, now=_Now.HIGHEST,
        find=lambda answers: answers.machines(Question.GPU),
    ),
    _Plan(
        id="gpu_memory", title="GPU memory", unit=Unit.SHARE, rank=_busiest, about=_About.MACHINES, now=_Now.HIGHEST,
        find=lambda answers: answers.shares(Question.GPU_MEMORY, Question.GPU_MEMORY_SIZE),
    ),
    _Plan(
        id="heat", title="GPU temperature", unit=Unit.CELSIUS, find=lambda answers: answers.machines(Question.GPU_HEAT), rank=_busiest,
        about=_About.MACHINES, now=_Now.HIGHEST,
    ),
)  # fmt: skip


def draw(found: Mapping[Question, History | errors.AimeshError], span: Span, names: Mapping[str, str], node: str = "") -> Charts:
    """Return the charts. ``names`` has the node names by the stored part of the id; ``node`` restricts the charts to one node.

    Raises the error of the metrics service if the collection times are unavailable.
    """
    whole = found[Question.WHOLE]
    if isinstance(whole, errors.AimeshError):
        raise whole
    grid = Grid(whole.since, timedelta(seconds=whole.step_seconds), max(len(line.values) for line in whole.lines) if whole.lines else 0)
    answers = Answers(found, grid, names, node)
    seen = answers.looks()
    if history_lines.first_known(seen) is None:
        return Charts()
    columns = _columns(grid, span)
    drawn = (_chart(plan, answers, columns) for plan in _PLANS if plan.about is not _About.MESH or not node)
    return Charts(
        since=str(int(grid.since.timestamp())),
        step_seconds=whole.step_seconds,
        periods=tuple(history_lines.moment(grid.begins(column.start), grid) for column in columns),
        charts=tuple(chart for chart in drawn if chart is not None),
        gaps=_say_gaps(seen, grid),
        is_empty=False,
        blank=Line(periods=("",) * len(columns)),
    )


def values(charts: Charts) -> dict[str, object]:
    """Return the live values."""
    found: dict[str, object] = {"since": charts.since, "gaps": charts.gaps}
    found |= {f"p{place}": text for place, text in enumerate(charts.periods)}
    for chart in charts.charts:
        found |= {chart.id: [_plain(line) for line in chart.lines], f"{chart.id}_note": chart.note, f"{chart.id}_now": chart.now}
    return found


def _plain(line: Line) -> dict[str, str]:
    facts = asdict(line)
    return {f"p{place}": text for place, text in enumerate(facts.pop("periods"))} | facts


def _columns(grid: Grid, span: Span) -> list[slice]:
    """Return the steps of each table column, including columns that have no data yet."""
    whole, period = history_questions.STEPS[span].whole, history_questions.STEPS[span].period
    each = max(1, period // grid.step)
    return [slice(begin, begin + each) for begin in range(0, max(1, whole // grid.step), each)]


def _chart(plan: _Plan, answers: Answers, columns: Sequence[slice]) -> Chart | None:
    try:
        found, trouble = plan.find(answers), ""
    except errors.AimeshError as error:
        found, trouble = [], f"Unavailable: {error.message}."
    known = [one for one in found if history_lines.first_known(one.values) is not None]
    if not known and not trouble and not plan.nothing:
        return None
    shown = known[:MOST_LINES] if plan.rank is None else _chosen(known, plan.rank)
    note = trouble or (_note(plan, shown, len(known) - len(shown), answers) if known else plan.nothing)
    lines = tuple(_line(plan.unit, one, columns) for one in shown)
    return Chart(plan.id, plan.title, plan.unit, plan.hint, lines, note, _say_now(plan, known))


def _chosen(known: Sequence[Series], rank: Callable[[Values], float]) -> list[Series]:
    """Return the top lines sorted by name, so that lines keep their colors when their ranks change."""
    most = sorted(known, key=lambda one: (rank(one.values), one.label, one.id))[:MOST_LINES]
    return sorted(most, key=lambda one: (one.label, one.id))


def _note(plan: _Plan, shown: Sequence[Series], left_out: int, answers: Answers) -> str:
    """Describe omitted lines and gaps."""
    parts = []
    if left_out:
        chosen = "fullest" if plan.rank is _fullest else "busiest"
        parts.append(f"Showing the {len(shown)} {chosen}; {left_out} more not shown.")
    if plan.about is _About.MACHINES:
        parts += _say_broken(shown, answers)
    return " ".join(parts)


def _say_broken(shown: Sequence[Series], answers: Answers) -> list[str]:
    """Describe the gaps of machines while others had data."""
    whole = history_lines.gaps(answers.looks())
    broken = [(one, own) for one in shown if (own := [gap for gap in history_lines.gaps(one.values) if gap not in whole])]
    said = [f"{one.short}: {history_lines.say_gaps(own, answers.grid)}." for one, own in broken[:_MOST_BROKEN]]
    return [*said, f"{len(broken) - _MOST_BROKEN} more with gaps."] if len(broken) > _MOST_BROKEN else said


def _say_gaps(seen: Values, grid: Grid) -> str:
    first = history_lines.first_known(seen) or 0
    parts = [f"The history starts at {history_lines.moment(grid.begins(first), grid)}."] if first > history_lines.NOT_YET else []
    if said := history_lines.say_gaps(history_lines.gaps(seen), grid):
        parts.append(f"{said[0].upper()}{said[1:]}.")
    return " ".join(parts)


def _say_now(plan: _Plan, known: Sequence[Series]) -> str:
    latest = [value for one in known if (value := history_lines.latest(one.values)) is not None]
    if not latest:
        return ""
    several = len(latest) > 1
    match plan.now:
        case _Now.TOTAL:
            return history_lines.text(plan.unit, sum(latest))
        case _Now.LAST:
            return f"{known[-1].label} {history_lines.text(plan.unit, history_lines.latest(known[-1].values))}"
        case _Now.HIGHEST:
            return f"{'max ' if several else ''}{history_lines.text(plan.unit, max(latest))}"
        case _Now.LOWEST:
            return f"{'min ' if several else ''}{history_lines.text(plan.unit, min(latest))}"


def _line(unit: Unit, one: Series, columns: Sequence[slice]) -> Line:
    means = (history_lines.mean(one.values[column]) for column in columns)
    return Line(
        id=one.id,
        label=one.label,
        points=history_lines.written(unit, one.values),
        latest=history_lines.text(unit, history_lines.latest(one.values)),
        periods=tuple(history_lines.text(unit, mean) for mean in means),
        lowest=history_lines.text(unit, history_lines.lowest(one.values)),
        highest=history_lines.text(unit, history_lines.highest(one.values)),
    )
