"""Compare machines of your own with an API: a form, both costs by conversations a month, and the break-even."""

from dataclasses import dataclass
from datetime import UTC, timedelta

from litestar import get
from litestar.di import NamedDependency

from features.business_report.lists import cost_model
from features.business_report.lists.cost_model import CostPlan, PlanField
from features.business_report.lists.cost_seeds import shown
from features.business_report.web.report import REPORT_SECONDS
from services.web.request_context import Page, PageRequest
from shared import errors
from shared.api import business

_MESH_DAYS = 30
#: The most of the chart.
_STEPS = 150
#: What the chart shows besides the break-even, if there is none.
_MACHINES = 4


@dataclass(frozen=True, slots=True)
class CostLine:
    """What a number of conversations a month costs."""

    conversations: str
    own: str
    api: str
    machines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CostPage:
    #: With what was typed.
    fields: tuple[tuple[PlanField, str], ...]
    wrong: str = ""
    verdict: tuple[str, ...] = ()
    lines: tuple[CostLine, ...] = ()
    #: This mesh in a month; None if it wasn't asked for.
    mesh: CostLine | None = None
    #: It was asked for, and nobody uses the mesh.
    is_unused: bool = False


@get("/admin/cost")
async def show_cost(page_request: NamedDependency[PageRequest]) -> Page:
    query = page_request.request.query_params
    typed = {field.name: text[:30] for field in cost_model.FIELDS if (text := query.get(field.name, "").strip())}
    try:
        plan = cost_model.read(typed)
        found = await _of_mesh(page_request, plan) if (asks_mesh := "mesh" in query) else None
    except cost_model.WrongNumber as error:
        wrong = errors.BadRequest(f"{error.field.label}: {error}", hint="change this number")
        return page_request.page(
            "business_report/cost.html", CostPage(fields=_fields(CostPlan(), typed), wrong=error.field.name), problem=wrong
        )
    plan, conversations = found or (plan, 0)
    even = plan.break_even()
    last = max(2 * even[0] if even else _MACHINES * plan.capacity, conversations)
    step = _round_up(-(-last // _STEPS))
    view = CostPage(
        fields=_fields(plan, {} if found else typed),
        verdict=plan.verdict(),
        lines=tuple(_line(plan, number, step) for number in range(0, last + step, step)),
        mesh=_line(plan, conversations, 1) if conversations else None,
        is_unused=asks_mesh and found is None,
    )
    return page_request.page("business_report/cost.html", view)


async def _of_mesh(page_request: PageRequest, plan: CostPlan) -> tuple[CostPlan, int] | None:
    until = page_request.app.now().astimezone(UTC).date() + timedelta(days=1)
    request = business.GetBusinessReport(until - timedelta(days=_MESH_DAYS), until)
    total = (await page_request.call(business.get_business_report, request, deadline_seconds=REPORT_SECONDS)).total
    return plan.of_mesh(total.prompt_tokens, total.completion_tokens, total.conversations, _MESH_DAYS)


def _round_up(step: int) -> int:
    """Return the next of 1, 2, 5, 10, 20 etc."""
    power: int = 10 ** (len(str(step)) - 1)
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step)


def _fields(plan: CostPlan, typed: dict[str, str]) -> tuple[tuple[PlanField, str], ...]:
    return tuple((field, typed.get(field.name, f"{getattr(plan, field.name):f}")) for field in cost_model.FIELDS)


def _line(plan: CostPlan, conversations: int, step: int) -> CostLine:
    unit, letter = next((unit, letter) for unit, letter in ((10**6, "M"), (1000, "K"), (1, "")) if step % unit == 0)
    label = f"{conversations // unit:,}{letter}" if conversations else "0"
    return CostLine(label, shown(plan.own(conversations)), shown(plan.api(conversations)), plan.machines(conversations))
