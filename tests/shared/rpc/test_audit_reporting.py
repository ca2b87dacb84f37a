"""What a service reports to the audit log: no action is lost or merged, equal refusals are counted, and everything is bounded."""

import asyncio
from uuid import UUID

import pytest

from shared import context, errors
from shared.api import audit, auth
from shared.api.audit import AuditedAct, Result
from shared.api.method import Nothing
from shared.rpc import audit_reporting
from shared.rpc.audit_reporting import AuditReporting
from shared.types import TenantId, Tier, UserId, UserRole
from tests.services.gateway.fakes import PERSON, USER, FakeRpc
from tests.services.gateway.log_lines import Lines
from tests.stopwatch import HANG_SECONDS

REFUSAL = errors.NotAllowed("ada may not do this")


class Auth:
    """Records acts; may be unreachable or slow."""

    def __init__(self, rpc: FakeRpc) -> None:
        self.batches: list[tuple[AuditedAct, ...]] = []
        self.away = False
        self.asked = 0
        #: While this is cleared, no request is answered.
        self.answers = asyncio.Event()
        self.answers.set()
        rpc.answers[audit.record_acts.name] = self._record

    async def _record(self, request: audit.RecordActs) -> Nothing:
        self.asked += 1
        await self.answers.wait()
        if self.away:
            raise errors.NotReachable("no auth")
        self.batches.append(request.acts)
        return Nothing()

    @property
    def acts(self) -> list[AuditedAct]:
        return [act for batch in self.batches for act in batch]


@pytest.fixture
def rpc() -> FakeRpc:
    return FakeRpc()


@pytest.fixture
def listener(rpc: FakeRpc) -> Auth:
    return Auth(rpc)


@pytest.fixture
def reporting(rpc: FakeRpc, listener: Auth) -> AuditReporting:
    return AuditReporting(rpc)


async def test_equal_refusals_are_one_row_with_a_count(reporting: AuditReporting, listener: Auth) -> None:
    for _ in range(1000):
        reporting.report_refusal("getUserQuota", PERSON, "192.0.2.7", REFUSAL)
    reporting.report_refusal("getUserQuota", PERSON, "192.0.2.8", REFUSAL)
    reporting.report_refusal("listUsers", PERSON, "192.0.2.7", REFUSAL)
    reporting.report_refusal("getUserQuota", None, "192.0.2.7", REFUSAL)
    reporting.report_refusal("getUserQuota", PERSON, "192.0.2.7", errors.NotAllowed("another reason"))
    await reporting.send()
    assert [(act.times, act.action, act.address, act.actor, act.details["why"]) for act in listener.acts] == [
        (1000, "getUserQuota", "192.0.2.7", USER, REFUSAL.message),
        (1, "getUserQuota", "192.0.2.8", USER, REFUSAL.message),
        (1, "listUsers", "192.0.2.7", USER, REFUSAL.message),
        (1, "getUserQuota", "192.0.2.7", None, REFUSAL.message),
        (1, "getUserQuota", "192.0.2.7", USER, "another reason"),
    ]
    assert {act.result for act in listener.acts} == {Result.REFUSED}


async def test_a_refusal_names_its_actor_and_tenant(reporting: AuditReporting, listener: Auth) -> None:
    team = TenantId(UUID(int=77))
    reporting.report_refusal("m", auth.Principal(USER, "ada", UserRole.USER, Tier.FREE, team_id=team), "", REFUSAL)
    reporting.report_refusal("m", PERSON, "", REFUSAL)
    reporting.report_refusal("m", None, "", REFUSAL)
    await reporting.send()
    assert [(act.tenant_id, act.actor) for act in listener.acts] == [(team, USER), (TenantId(USER), USER), (None, None)]


async def test_each_action_has_its_own_row_even_within_one_request(reporting: AuditReporting, listener: Auth) -> None:
    """The caller chooses the request's id: if the id identified acts, a second transfer could hide behind the first."""
    context.start()
    reporting.report_action("credits.move", PERSON, target="bob", micro="1")
    reporting.report_action("credits.move", PERSON, target="bob", micro="1000000")
    await reporting.send()
    assert [(act.details["micro"], act.times, act.result) for act in listener.acts] == [
        ("1", 1, Result.DONE),
        ("1000000", 1, Result.DONE),
    ]
    assert len({act.request_id for act in listener.acts}) == 1
    assert listener.acts[0].request_id


async def test_the_order_is_kept_over_batches_of_at_most_two_hundred(reporting: AuditReporting, listener: Auth) -> None:
    for number in range(450):
        reporting.report_action("model.load", PERSON, target=number)
    await reporting.send()
    assert [len(batch) for batch in listener.batches] == [200, 200, 50]
    assert [act.target for act in listener.acts] == [str(number) for number in range(450)]
    await reporting.send()
    assert listener.asked == 3, "nothing is told twice"


async def test_reports_are_kept_in_order_while_auth_is_down(reporting: AuditReporting, listener: Auth) -> None:
    listener.away = True
    for number in range(300):
        reporting.report_action("price.set", PERSON, target=number)
        await reporting.send()
    assert listener.acts == []
    assert listener.asked == 300, "one batch a try, however much waits"
    listener.away = False
    await reporting.send()
    assert [act.target for act in listener.acts] == [str(number) for number in range(300)]


async def test_a_refusal_during_a_failing_send_is_added_to_its_equals(reporting: AuditReporting, listener: Auth) -> None:
    for _ in range(5):
        reporting.report_refusal("m", PERSON, "", REFUSAL)
    reporting.report_action("price.set", PERSON)
    listener.answers.clear()
    listener.away = True
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(reporting.send())
        await _until_asked(listener, 1)
        reporting.report_action("model.load", PERSON)
        reporting.report_refusal("m", PERSON, "", REFUSAL)
        listener.answers.set()
    listener.away = False
    await reporting.send()
    assert [(act.action, act.times) for act in listener.acts] == [("m", 6), ("price.set", 1), ("model.load", 1)]


async def test_a_cancellation_while_sending_loses_nothing(reporting: AuditReporting, listener: Auth) -> None:
    """The sending task is canceled with its batch in flight; the last send before the stop includes that batch."""
    for number in range(250):
        reporting.report_action("price.set", PERSON, target=number)
    listener.answers.clear()
    running = asyncio.create_task(reporting.send())
    await _until_asked(listener, 1)
    last = asyncio.create_task(reporting.send())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    listener.answers.set()
    await last
    assert [act.target for act in listener.acts] == [str(number) for number in range(250)]


async def test_the_last_send_waits_for_the_one_in_progress(reporting: AuditReporting, listener: Auth) -> None:
    reporting.report_action("price.set", PERSON)
    listener.answers.clear()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(reporting.send())
        await _until_asked(listener, 1)
        last = tasks.create_task(reporting.send())
        for _ in range(3):
            await asyncio.sleep(0)
        assert not last.done()
        listener.answers.set()
    assert len(listener.acts) == 1


async def test_different_refusals_are_bounded_and_actions_are_not(
    reporting: AuditReporting, listener: Auth, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines(monkeypatch)
    for number in range(audit_reporting._MAX_KEPT + 10):
        reporting.report_refusal("m", PERSON, f"address {number}", REFUSAL)
    for _ in range(7):
        reporting.report_refusal("m", PERSON, "address 0", REFUSAL)
    reporting.report_action("price.set", PERSON)
    await reporting.send()
    assert len(listener.acts) == audit_reporting._MAX_KEPT + 1
    assert (listener.acts[0].times, listener.acts[-1].action) == (8, "price.set")
    assert lines.of("refusals are missing from the audit log") == ["{'part': 'audit', 'dropped': 1}"]


async def test_reports_are_sent_within_about_a_second(reporting: AuditReporting, listener: Auth, monkeypatch: pytest.MonkeyPatch) -> None:
    assert audit_reporting._EVERY_SECONDS <= 1
    monkeypatch.setattr(audit_reporting, "_EVERY_SECONDS", 0.001)
    async with asyncio.timeout(HANG_SECONDS):
        running = asyncio.create_task(reporting.run())
        for target in ("first", "second"):
            reporting.report_action("price.set", PERSON, target=target)
            before = len(listener.acts)
            while len(listener.acts) == before:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    running.cancel()
    assert [act.target for act in listener.acts] == ["first", "second"]


async def test_an_action_names_its_actor_tenant_and_target(reporting: AuditReporting, listener: Auth) -> None:
    user = UserId(UUID(int=5))
    reporting.report_action("credits.move", PERSON, tenant=TenantId(user), target=user, note="thanks")
    reporting.report_action("price.set", PERSON, target="default")
    await reporting.send()
    move, price = listener.acts
    assert (move.tenant_id, move.actor, move.target, move.details) == (TenantId(user), USER, str(user), {"note": "thanks"})
    assert (price.tenant_id, price.target, price.address) == (None, "default", "")
    assert move.at.tzinfo is not None


async def _until_asked(listener: Auth, times: int) -> None:
    while listener.asked < times:  # noqa: ASYNC110
        await asyncio.sleep(0)
