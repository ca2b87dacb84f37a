"""The charts of administrators: which there are, and the lines of each as texts. Pure; the caller brings what metrics answered."""

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

#: Of one chart: more colours and dashes nobody can tell apart.
MOST_LINES = 12
#: Of one chart, machines of which it is said that they have gaps.
_MOST_BROKEN = 3


@dataclass(frozen=True, slots=True)
class Line:
    """All texts, because pages that are open get the same."""

    id: str = ""
    label: str = ""
    #: For the scripts, step by step; nothing where nothing is known.
    points: str = ""
    latest: str = ""
    #: The mean of each column of the table.
    periods: tuple[str, ...] = ()
    lowest: str = ""
    highest: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    id: str
    title: str
    unit: Unit
    #: What one should know to read it.
    hint: str
    #: Those of the table in which each line is a row.
    lines: tuple[Line, ...]
    #: Gaps, and lines that are left out; or why there are none at all.
    note: str


@dataclass(frozen=True, slots=True)
class Charts:
    #: When the first step begins, in Unix seconds.
    since: str = ""
    step_seconds: int = 0
    #: When each column of the tables begins.
    periods: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    #: Times of which nothing is known.
    gaps: str = ""
    #: Nothing is known at all.
    is_empty: bool = True
    #: What the row of a line that comes later is made from.
    blank: Line = field(default_factory=Line)


class _About(Enum):
    """What the lines of a chart tell of; the page of one machine has no charts of the mesh."""

    MESH = auto()
    MACHINES = auto()
    #: The mesh where the page is about it, and the machine on the page of one.
    EITHER = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    id: str
    title: str
    unit: Unit
    find: Callable[[Answers], list[Series]]
    hint: str = ""
    about: _About = _About.MESH
    #: What is said where it has no line; where that is empty, the chart is not there then.
    nothing: str = ""
    #: By which of its lines those are chosen that are shown. None: it has few, in an order of their own.
    rank: Callable[[Values], float] | None = None


def _busiest(values: Values) -> float:
    return -(history_lines.mean(values) or 0.0)


def _fullest(values: Values) -> float:
    """Of what is free."""
    return history_lines.mean(values) or 0.0


_PLANS = (
    _Plan(id="requests", title="Requests a second", unit=Unit.RATE, find=Answers.requests),
    _Plan(
        id="first", title="Time to the first token", unit=Unit.SECONDS, find=Answers.first_tokens, nothing="No answers in this time.",
        hint="Estimated from how many came within 0.1, 0.5, 1, 2.5 and 10 s. While nothing is answered there is no line.",
    ),
    _Plan(
        id="tokens", title="Tokens a second", unit=Unit.RATE, find=Answers.tokens, nothing="No gateway told of any in this time.",
    ),
    _Plan(
        id="waiting", title="Requests that wait", unit=Unit.COUNT, find=Answers.waiting, rank=_busiest,
        nothing="No requests for a model in this time.",
    ),
    _Plan(
        id="running", title="Answers being written", unit=Unit.COUNT, find=Answers.running, rank=_busiest,
        nothing="No model is loaded on a worker.",
    ),
    _Plan(
        id="round_trips", title="Round trips", unit=Unit.SECONDS, find=Answers.round_trips, about=_About.EITHER,
        nothing="No node told of any in this time.", hint="Means over the links that were open, by the way they take.",
    ),
    _Plan(
        id="cpu", title="Processors", unit=Unit.SHARE, find=lambda answers: answers.machines(Question.CPU), rank=_busiest,
        nothing="No machine tells it.", hint="Several nodes on one machine each tell of the whole machine.", about=_About.MACHINES,
    ),
    _Plan(
        id="memory", title="Memory", unit=Unit.SHARE, find=lambda answers: answers.shares(Question.MEMORY, Question.MEMORY_SIZE),
        rank=_busiest, nothing="No machine tells it.", about=_About.MACHINES,
    ),
    _Plan(
        id="disk", title="Free on disk", unit=Unit.BYTES, find=lambda answers: answers.machines(Question.DISK), rank=_fullest,
        nothing="No machine tells it.", hint="Of the disk that has the node’s files.", about=_About.MACHINES,
    ),
    _Plan(
        id="gpu", title="GPUs", unit=Unit.SHARE, find=lambda answers: answers.machines(Question.GPU), rank=_busiest, about=_About.MACHINES,
    ),
    _Plan(
        id="gpu_memory", title="Memory of GPUs", unit=Unit.SHARE, rank=_busiest, about=_About.MACHINES,
        find=lambda answers: answers.shares(Question.GPU_MEMORY, Question.GPU_MEMORY_SIZE),
    ),
    _Plan(
        id="heat", title="Temperature of GPUs", unit=Unit.CELSIUS, find=lambda answers: answers.machines(Question.GPU_HEAT), rank=_busiest,
        about=_About.MACHINES,
    ),
)  # fmt: skip


def draw(found: Mapping[Question, History | errors.AimeshError], span: Span, names: Mapping[str, str], node: str = "") -> Charts:
    """``names`` are those of machines by the beginning of their id. With ``node``, the charts of that machine alone. Raises what the
    metrics service said instead of telling when it looked at the mesh: then there is nothing to draw."""
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
    """What a page that is open names."""
    found: dict[str, object] = {"since": charts.since, "gaps": charts.gaps}
    found |= {f"p{place}": text for place, text in enumerate(charts.periods)}
    for chart in charts.charts:
        found |= {chart.id: [_plain(line) for line in chart.lines], f"{chart.id}_note": chart.note}
    return found


def _plain(line: Line) -> dict[str, str]:
    facts = asdict(line)
    return {f"p{place}": text for place, text in enumerate(facts.pop("periods"))} | facts


def _columns(grid: Grid, span: Span) -> list[slice]:
    """The steps of each column of a table; as many columns whether or not the last steps have come."""
    whole, period = history_questions.STEPS[span].whole, history_questions.STEPS[span].period
    each = max(1, period // grid.step)
    return [slice(begin, begin + each) for begin in range(0, max(1, whole // grid.step), each)]


def _chart(plan: _Plan, answers: Answers, columns: Sequence[slice]) -> Chart | None:
    try:
        found, trouble = plan.find(answers), ""
    except errors.AimeshError as error:
        found, trouble = [], f"This could not be read: {error.message}."
    known = [one for one in found if history_lines.first_known(one.values) is not None]
    if not known and not trouble and not plan.nothing:
        return None
    shown = known[:MOST_LINES] if plan.rank is None else _chosen(known, plan.rank)
    note = trouble or (_note(plan, shown, len(known) - len(shown), answers) if known else plan.nothing)
    return Chart(plan.id, plan.title, plan.unit, plan.hint, tuple(_line(plan.unit, one, columns) for one in shown), note)


def _chosen(known: Sequence[Series], rank: Callable[[Values], float]) -> list[Series]:
    """By name, so that a line that is busier than another for a moment does not take its colour."""
    most = sorted(known, key=lambda one: (rank(one.values), one.label, one.id))[:MOST_LINES]
    return sorted(most, key=lambda one: (one.label, one.id))


def _note(plan: _Plan, shown: Sequence[Series], left_out: int, answers: Answers) -> str:
    """What the lines do not say by themselves."""
    parts = []
    if left_out:
        chosen = "fullest" if plan.rank is _fullest else "busiest"
        parts.append(f"{left_out} more {'is' if left_out == 1 else 'are'} not shown: these are the {chosen}.")
    if plan.about is _About.MACHINES:
        parts += _say_broken(shown, answers)
    return " ".join(parts)


def _say_broken(shown: Sequence[Series], answers: Answers) -> list[str]:
    """Of machines that were not there while others were."""
    whole = history_lines.gaps(answers.looks())
    broken = [(one, own) for one in shown if (own := [gap for gap in history_lines.gaps(one.values) if gap not in whole])]
    said = [f"{one.short}: {history_lines.say_gaps(own, answers.grid)}." for one, own in broken[:_MOST_BROKEN]]
    return [*said, f"{len(broken) - _MOST_BROKEN} more have gaps."] if len(broken) > _MOST_BROKEN else said


def _say_gaps(seen: Values, grid: Grid) -> str:
    first = history_lines.first_known(seen) or 0
    parts = [f"The history begins at {history_lines.moment(grid.begins(first), grid)}."] if first > history_lines.NOT_YET else []
    if said := history_lines.say_gaps(history_lines.gaps(seen), grid):
        parts.append(f"{said[0].upper()}{said[1:]}.")
    return " ".join(parts)


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
