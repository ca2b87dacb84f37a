"""Monthly statements of node owners."""

from datetime import UTC, date, datetime
from typing import Any, cast
from uuid import UUID

import msgspec
import pytest

from features.business_report import contract
from features.business_report.contract import GetOwnerStatements, OwnerStatement
from features.business_report.gateway import owner_statements
from features.business_report.gateway.owner_statements import OwnerStatements
from services.gateway.usage_store import DaysStore
from shared import errors
from shared.api import business, membership, metrics
from shared.api.business import ActiveUsers, BusinessReport, BusinessRow, BusinessSum
from shared.api.membership import Member, MemberState
from shared.api.metrics import Energy, NodeEnergy
from shared.telemetry.instrument import node_label
from shared.types import MicroCredits, NodeId, Role, UserRole
from tests.services.gateway.fakes import PERSON, FakeRpc, rpc_call

OTHER = UUID(int=9)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
#: Months that a test asks for must not be in the future.
MONTH = "2026-03"


def member(number: int, owner: str) -> Member:
    return Member(node(number), Role.WORKER, MemberState.ACTIVE, f"rig-{number}", owner, {}, NOW, None, None, None, "")


def node(number: int) -> NodeId:
    return NodeId(f"U{number:02d}{'A' * 53}")


def used(number: int, source: str, kwh: float, cost: float | None = None) -> NodeEnergy:
    return NodeEnergy(node_label(node(number)), kwh * metrics.JOULES_PER_KWH, cost, (source,))


def earned(credits_: int) -> BusinessSum:
    return BusinessSum(succeeded=4, failed=1, prompt_tokens=30, completion_tokens=20, cost_micro=MicroCredits(credits_ * 10**6))


class Days(DaysStore):
    def __init__(self) -> None:
        self.asked: list[business.GetBusinessReport] = []

    async def report(self, query: business.GetBusinessReport) -> BusinessReport:
        self.asked.append(query)
        rows = (BusinessRow(str(OTHER), earned(6)), BusinessRow(str(PERSON.user_id), earned(2)), BusinessRow(None, earned(0)))
        return BusinessReport(earned(8), rows, False, MicroCredits(0), ActiveUsers(1, 1, 1, 1))


@pytest.fixture
def rpc() -> FakeRpc:
    found = FakeRpc()

    async def members(_: object) -> membership.Members:
        return membership.Members((member(1, "ada"), member(2, "ada"), member(3, "bob"), member(4, "")))

    async def energy(_: metrics.GetEnergy) -> Energy:
        return Energy(
            (used(1, "counter", 2, 0.5), used(2, "watts", 1, 0.25), used(3, "power", 4), used(4, "watts", 8), used(5, "watts", 1))
        )

    async def names(request: business.NameUsers) -> business.UserNames:
        return business.UserNames({str(OTHER): "bob", str(PERSON.user_id): "ada"})

    found.answers = {"auth.listNodes": members, "metrics.getEnergy": energy, "auth.nameUsers": names}
    return found


async def statements(rpc: FakeRpc, role: UserRole, month: str = MONTH) -> contract.OwnerStatements:
    call = rpc_call(msgspec.structs.replace(PERSON, role=role))
    return await OwnerStatements(Days(), cast("Any", rpc)).get_owner_statements(GetOwnerStatements(month), call)


async def test_an_administrator_sees_all_owners_and_the_rest(rpc: FakeRpc) -> None:
    found = await statements(rpc, UserRole.ADMIN)
    shown = {row.owner: (row.requests, row.earned_share, row.kwh, row.energy_cost, row.measured_by) for row in found.rows}
    assert shown == {
        "bob": (5, 0.75, 4.0, None, ("power",)),
        "ada": (5, 0.25, 3.0, 0.75, ("counter", "watts")),
        None: (5, 0.0, 9.0, None, ("watts",)),
    }
    assert not found.missing


async def test_an_owner_sees_only_their_own_and_not_what_the_mesh_earns(rpc: FakeRpc) -> None:
    found = await statements(rpc, UserRole.NODE_OWNER)
    assert found.rows == (
        OwnerStatement(
            owner="ada", requests=5, prompt_tokens=30, completion_tokens=20, earned_micro=MicroCredits(2_000_000), earned_share=None,
            kwh=3.0, measured_by=("counter", "watts"), energy_cost=0.75,
        ),
    )  # fmt: skip
    assert "auth.nameUsers" not in rpc.called


async def test_requests_are_shown_without_the_energy(rpc: FakeRpc) -> None:
    del rpc.answers["metrics.getEnergy"]
    (row,) = (found := await statements(rpc, UserRole.NODE_OWNER)).rows
    assert (row.requests, row.kwh, row.energy_cost, row.measured_by) == (5, None, None, ())
    assert found.missing == "nobody serves metrics.getEnergy"


@pytest.mark.parametrize(
    ("month", "days"),
    [("2026-11", (date(2026, 11, 1), date(2026, 12, 1))), ("2025-12", (date(2025, 12, 1), date(2026, 1, 1)))],
)
def test_a_month_has_its_days(month: str, days: tuple[date, date]) -> None:
    assert owner_statements.days_of(month, date(2026, 11, 29)) == days


@pytest.mark.parametrize("month", ["", "2026-12", "2026-13", "1999-12", "26-01", "2026-11-01", "²026-01", "9999-12"])
def test_other_months_are_refused(month: str) -> None:
    with pytest.raises(errors.BadRequest, match="is not a month up to this one"):
        owner_statements.days_of(month, date(2026, 11, 29))
