from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from features.business_report.lists import cost_seeds
from features.business_report.lists.cost_model import CostPlan
from tools import generated

LOOKED_AT = 400


@st.composite
def plans(draw: st.DrawFn) -> CostPlan:
    """Plans whose machines answer 1 to 40 conversations."""

    def number(most: int) -> Decimal:
        return Decimal(draw(st.integers(0, most)))

    capacity = draw(st.integers(1, 40))
    return CostPlan(
        hourly=number(40) / 730,
        tokens_per_second=Decimal(1),
        utilization=Decimal(1),
        output_tokens=Decimal(730 * 3600) / capacity,
        watts_idle=number(100),
        watts_busy=number(1000),
        kwh=number(2) / 100,
        fixed=number(100),
        api_fixed=number(100),
        api_input=Decimal(0),
        api_output=number(10) * capacity / 4,
    )


@given(plans())
def test_the_break_even_is_where_a_count_finds_it(plan: CostPlan) -> None:
    cheaper = [number for number in range(1, LOOKED_AT) if plan.own(number) <= plan.api(number)]
    found = plan.break_even()
    if found is None:
        assert not cheaper
        return
    first, stays = found
    if first < LOOKED_AT:
        assert cheaper[0] == first
    if stays is not None and stays < LOOKED_AT:
        dearer = sorted({*range(1, LOOKED_AT)} - {*cheaper})
        assert stays == (dearer[-1] + 1 if dearer else 1)


def test_power_counts_by_the_time_that_a_machine_is_busy() -> None:
    plan = CostPlan(hourly=Decimal(0), watts_idle=Decimal(100), watts_busy=Decimal(300), kwh=Decimal("0.5"), fixed=Decimal(0))
    assert plan.machine_month == Decimal("36.5"), "730 hours of 0.1 kW"
    busy_hours = 3_000 / Decimal(60) / 3600
    assert plan.own(10) == Decimal("36.5") + 10 * busy_hours * Decimal("0.2") * Decimal("0.5")


def test_the_documents_tables_are_computed_again() -> None:
    found = {row.what: (row.said, row.computed, row.difference) for row in cost_seeds.checked()}
    assert found["API costs at the break-even"] == (1_200, 1_213, 13)
    assert found["conversations at the break-even"][1] == 24_260
    assert found["2 n1-standard-4 with a T4"] == (780, Decimal("788.40"), Decimal("8.40"))
    assert found["50,000,000 requests a day, a month"][1] == 108_000
    assert found["API costs whose half pays for GKE"] == (None, 2_426, None)


def test_the_guide_has_the_computed_tables() -> None:
    def shown(amount: Decimal | None) -> str:
        return "–" if amount is None else cost_seeds.shown(amount)

    rows = ((row.what, shown(row.said), shown(row.computed), row.remark) for row in cost_seeds.checked())
    guide = (generated.ROOT / "docs/howto/costs.md").read_text(encoding="utf-8")
    assert generated.table(("what", "source says", "computed", "remark"), rows) in guide
